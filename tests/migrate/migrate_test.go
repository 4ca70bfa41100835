package migrate

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/tests/target"
)

// patience bounds one command, or one watch.
const patience = 60 * time.Second

var (
	seed  = flag.Uint64("migrate.seed", 1, "seed of the data")
	steps = flag.Int("migrate.steps", 300, "how many random things are done to the data")
)

// bin holds the programs that the tests run, all built from source.
var bin struct{ dir, coterie, etcd string }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "migrate-bin-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = build(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func build(dir string) (err error) {
	bin.dir = dir
	var err1, err2 error
	bin.coterie, err = target.BuildCoterie(context.Background(), dir)
	bin.etcd, err1 = target.BuildBinary(context.Background(), target.KindEtcd, dir)
	_, err2 = target.BuildTool(context.Background(), dir, target.Etcdutl)
	return errors.Join(err, err1, err2)
}

// command runs one of the programs and returns what it prints, and whether it failed.
func command(t *testing.T, name string, args ...string) (output string, failed bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(bin.dir, name), args...).CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return string(out), err != nil
}

func mustRun(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, failed := command(t, name, args...); failed {
		t.Fatalf("%s %q:\n%s", name, args, out)
	}
}

// lateEtcd is an etcd in this process that leaves all that it applies to its log alone for a time: what a copy of its
// directory has is what a crash leaves.
type lateEtcd struct{ server *embed.Etcd }

func startLate(t *testing.T, dir string) *lateEtcd {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = dir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.BackendBatchInterval = time.Hour
	c.BackendBatchLimit = 1 << 30
	c.SnapshotCount = 100 // so that the log is cut, too
	anyPort := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenClientUrls, c.ListenPeerUrls = []url.URL{anyPort}, []url.URL{anyPort}
	c.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2379"}}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	e := &lateEtcd{server}
	t.Cleanup(func() { e.Close() })
	select {
	case <-server.Server.ReadyNotify():
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	return e
}

func (e *lateEtcd) Name() string                               { return "late etcd" }
func (e *lateEtcd) Endpoint() string                           { return "http://" + e.server.Clients[0].Addr().String() }
func (e *lateEtcd) Restart(context.Context, target.Stop) error { return target.ErrNotOurs }
func (e *lateEtcd) Close() error                               { e.server.Close(); return nil }

func startEtcd(t *testing.T, dir string) target.Server {
	t.Helper()
	e, err := target.StartEtcd(t.Context(), target.Config{Dir: dir, UnsafeNoFsync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func startCoterie(t *testing.T, dir string) target.Server {
	t.Helper()
	c, err := target.StartCoterie(t.Context(), bin.coterie, target.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dial(t *testing.T, s target.Server) *clientv3.Client {
	t.Helper()
	cli, err := target.Dial(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

func stop(t *testing.T, s target.Server) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// served starts a server on a directory, takes a picture of it, and stops it.
func served(t *testing.T, dir string, start func(*testing.T, string) target.Server) string {
	t.Helper()
	s := start(t, dir)
	cli := dial(t, s)
	p := picture(t, cli, true)
	cli.Close()
	stop(t, s)
	return p
}

// TestFromEtcdAndBack moves a directory that etcd was stopped on, and the result back, several times.
func TestFromEtcdAndBack(t *testing.T) {
	dir := t.TempDir()
	first := filepath.Join(dir, "etcd")
	etcd := startEtcd(t, first)
	cli := dial(t, etcd)
	w := newWorkload(t, cli, *seed)
	w.run(*steps)
	w.alarm()
	if _, err := cli.UserAdd(t.Context(), "root", "the root's password"); err != nil {
		t.Fatal(err)
	}
	want := picture(t, cli, true)
	cli.Close()
	stop(t, etcd)
	before := fingerprint(t, first)

	coterie1, etcd2, coterie2 := filepath.Join(dir, "coterie1"), filepath.Join(dir, "etcd2"), filepath.Join(dir, "coterie2")
	mustRun(t, "coterie", "migrate", "--from", first, "--to", coterie1)
	same(t, "the source", before, fingerprint(t, first))
	same(t, "Coterie", want, served(t, coterie1, startCoterie))
	mustRun(t, "coterie", "migrate", "--to-etcd", "--from", coterie1, "--to", etcd2)
	same(t, "etcd again", want, served(t, etcd2, startEtcd))
	mustRun(t, "coterie", "migrate", "--from", etcd2, "--to", coterie2)
	same(t, "Coterie again", want, served(t, coterie2, startCoterie))

	// Passwords came along. Only etcd checks them.
	last := startEtcd(t, etcd2)
	cli = dial(t, last)
	if _, err := cli.UserGrantRole(t.Context(), "root", "root"); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Authenticate(t.Context(), "root", "the root's password"); err != nil {
		t.Errorf("the password was lost: %v", err)
	}
}

// TestAfterACrash moves what is left when nothing but the log has been written, by commands of every kind.
func TestAfterACrash(t *testing.T) {
	for _, moment := range []struct {
		name    string
		flushed int // steps after which all is in the database once
	}{{"log alone", 0}, {"database and log", *steps / 2}} {
		t.Run(moment.name, func(t *testing.T) {
			dir := t.TempDir()
			running, crashed, coterie := filepath.Join(dir, "etcd"), filepath.Join(dir, "crashed"), filepath.Join(dir, "coterie")
			etcd := startLate(t, running)
			cli := dial(t, etcd)
			w := newWorkload(t, cli, *seed)
			w.run(moment.flushed)
			if moment.flushed > 0 {
				etcd.server.Server.KV().Commit()
			}
			w.run(*steps - moment.flushed)
			w.alarm()
			want := picture(t, cli, true)
			copyDir(t, running, crashed)
			mustRun(t, "coterie", "migrate", "--from", crashed, "--to", coterie)
			same(t, "Coterie", want, served(t, coterie, startCoterie))
		})
	}
}

// TestATornTail moves a directory whose log ends in the middle of a record.
func TestATornTail(t *testing.T) {
	dir := t.TempDir()
	running, crashed, coterie := filepath.Join(dir, "etcd"), filepath.Join(dir, "crashed"), filepath.Join(dir, "coterie")
	etcd := startLate(t, running)
	cli := dial(t, etcd)
	newWorkload(t, cli, *seed).run(50)
	want := picture(t, cli, true)
	if _, err := cli.Put(t.Context(), "torn", strings.Repeat("x", 5000)); err != nil {
		t.Fatal(err)
	}
	copyDir(t, running, crashed)
	logs, err := filepath.Glob(filepath.Join(crashed, "member", "wal", "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	tear(t, logs[len(logs)-1])
	mustRun(t, "coterie", "migrate", "--from", crashed, "--to", coterie)
	same(t, "Coterie", want, served(t, coterie, startCoterie))
}

// tear takes sectors out of the last record, where the write did not reach the disk.
func tear(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndex(string(b), strings.Repeat("x", 5000))
	if at < 0 {
		t.Fatal("the record is not in the last file of the log")
	}
	clear(b[(at+1024)/512*512:])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRestore makes one member of etcd's and one of Coterie's from the same file, with both tools, and a file of either.
func TestRestore(t *testing.T) {
	for _, kind := range []struct {
		name  string
		start func(*testing.T, string) target.Server
	}{{"etcd", startEtcd}, {"coterie", startCoterie}} {
		t.Run("a file of "+kind.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "snapshot.db")
			s := kind.start(t, filepath.Join(dir, "source"))
			cli := dial(t, s)
			w := newWorkload(t, cli, *seed)
			w.run(*steps)
			w.alarm()
			want := picture(t, cli, false)
			mustRun(t, "coterie", "snapshot", "save", "--endpoints", s.Endpoint(), file)
			cli.Close()
			stop(t, s)
			for _, format := range []string{"simple", "fields", "json", "table"} {
				ours, _ := command(t, "coterie", "snapshot", "status", file, "-w", format)
				theirs, _ := command(t, "etcdutl", "snapshot", "status", file, "-w", format)
				same(t, "status as "+format, theirs, ours)
			}
			cluster := []string{"--initial-cluster", "default=http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380", "--initial-cluster-token", "new"}
			for name, more := range map[string][]string{"plain": nil, "bumped": {"--bump-revision", "1000", "--mark-compacted"}} {
				etcd, coterie := filepath.Join(dir, "etcd-"+name), filepath.Join(dir, "coterie-"+name)
				args := append(append([]string{"snapshot", "restore", file, "--data-dir"}, etcd), append(cluster, more...)...)
				mustRun(t, "etcdutl", args...)
				args[4] = coterie
				mustRun(t, "coterie", args...)
				theirs, ours := served(t, etcd, startEtcd), served(t, coterie, startCoterie)
				same(t, name, theirs, ours)
				if name == "plain" && !strings.HasPrefix(ours, want) {
					same(t, "restored", want, ours)
				}
				// Once more from etcd's directory, which knows of the bump in its own way.
				again := filepath.Join(dir, "again-"+name)
				mustRun(t, "coterie", "migrate", "--from", etcd, "--to", again)
				same(t, name+", migrated", theirs, served(t, again, startCoterie))
			}
		})
	}
}

// TestRestoreOfAClusterOfThree brings back a cluster that has lost all of its members.
func TestRestoreOfAClusterOfThree(t *testing.T) {
	dir := t.TempDir()
	c, err := target.StartCluster(t.Context(), target.ClusterConfig{Binary: bin.coterie, Kind: target.KindCoterie, Dir: filepath.Join(dir, "cluster"), Size: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	cli, err := c.Client(0)
	if err != nil {
		t.Fatal(err)
	}
	newWorkload(t, cli, *seed).run(*steps)
	want := picture(t, cli, false)
	file := filepath.Join(dir, "snapshot.db")
	mustRun(t, "coterie", "snapshot", "save", "--endpoints", c.Endpoint(0), file)
	cli.Close()
	var members []string
	for i := range 3 {
		members = append(members, c.Name(i)+"="+c.PeerURL(i))
	}
	for i := range 3 {
		if err := c.Kill(i); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(c.DataDir(i)); err != nil {
			t.Fatal(err)
		}
		mustRun(t, "coterie", "snapshot", "restore", file, "--data-dir", c.DataDir(i), "--name", c.Name(i),
			"--initial-cluster", strings.Join(members, ","), "--initial-advertise-peer-urls", c.PeerURL(i), "--initial-cluster-token", "again")
	}
	for i := range 3 {
		if err := c.Start(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		cli, err := c.Client(i)
		if err != nil {
			t.Fatal(err)
		}
		same(t, c.Name(i), want, picture(t, cli, false))
		cli.Close()
	}
	if cli, err = c.Client(1); err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	if _, err := cli.Put(t.Context(), "after", "restoring"); err != nil {
		t.Error(err)
	}
}

// TestFromAClusterOfThree takes one directory of an etcd with three members, which was stopped at once.
func TestFromAClusterOfThree(t *testing.T) {
	dir := t.TempDir()
	c, err := target.StartCluster(t.Context(), target.ClusterConfig{Binary: bin.etcd, Kind: target.KindEtcd, Dir: filepath.Join(dir, "cluster"), Size: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	leader, err := c.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cli, err := c.Client(leader)
	if err != nil {
		t.Fatal(err)
	}
	newWorkload(t, cli, *seed).run(*steps)
	want := picture(t, cli, false)
	cli.Close()
	for i := range 3 {
		if err := c.Kill(i); err != nil {
			t.Fatal(err)
		}
	}
	coterie := filepath.Join(dir, "coterie")
	args := []string{"migrate", "--from", c.DataDir(leader), "--to", coterie, "--uncommitted", "keep"}
	if out, failed := command(t, "coterie", args...); !failed || !strings.Contains(out, "--initial-cluster") {
		t.Errorf("one directory of three continues the cluster:\n%s", out)
	}
	mustRun(t, "coterie", append(args, "--initial-cluster", "default=http://127.0.0.1:2380", "--initial-advertise-peer-urls", "http://127.0.0.1:2380")...)
	s := startCoterie(t, coterie)
	same(t, "Coterie", want, picture(t, dial(t, s), false))
}

// TestRefusals: what cannot be moved is left alone, and nothing is begun where it should go.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	running, stopped, file := filepath.Join(dir, "running"), filepath.Join(dir, "stopped"), filepath.Join(dir, "snapshot.db")
	etcd := startEtcd(t, stopped)
	cli := dial(t, etcd)
	newWorkload(t, cli, *seed).run(20)
	mustRun(t, "coterie", "snapshot", "save", "--endpoints", etcd.Endpoint(), file)
	cli.Close()
	stop(t, etcd)
	startEtcd(t, running)
	coterie := filepath.Join(dir, "coterie")
	mustRun(t, "coterie", "migrate", "--from", stopped, "--to", coterie)
	served(t, coterie, startCoterie)
	full := filepath.Join(dir, "full")
	if err := os.MkdirAll(full, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(full, "precious"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	spoiled := func(name string, spoil func(dir string)) string {
		to := filepath.Join(dir, name)
		copyDir(t, stopped, to)
		spoil(to)
		return to
	}
	flip := func(pattern string, at func(size int64) int64) func(string) {
		return func(dir string) {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(found) == 0 {
				t.Fatalf("%v, %v", found, err)
			}
			flipByte(t, found[0], at)
		}
	}
	damagedFile := filepath.Join(dir, "damaged.db")
	copyFile(t, file, damagedFile)
	flipByte(t, damagedFile, func(size int64) int64 { return size / 2 })
	auth := filepath.Join(dir, "auth")
	withAuth(t, auth)
	to := filepath.Join(dir, "to")
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"etcd runs":            {[]string{"migrate", "--from", running, "--to", to}, "in use by etcd"},
		"data is there":        {[]string{"migrate", "--from", stopped, "--to", full}, "not empty"},
		"Coterie's data there": {[]string{"migrate", "--from", stopped, "--to", coterie}, "not empty"},
		"no such source":       {[]string{"migrate", "--from", to + "x", "--to", to}, "no such file"},
		"Coterie's already":    {[]string{"migrate", "--from", coterie, "--to", to}, "Coterie's already"},
		"no data of etcd":      {[]string{"migrate", "--from", full, "--to", to}, "no data directory of etcd"},
		"no data of Coterie":   {[]string{"migrate", "--to-etcd", "--from", stopped, "--to", to}, "no data directory of Coterie"},
		"etcd's data is there": {[]string{"migrate", "--to-etcd", "--from", coterie, "--to", stopped}, "not empty"},
		"a damaged database": {[]string{"migrate", "--from", spoiled("bad-db", func(dir string) {
			if err := os.Truncate(filepath.Join(dir, "member", "snap", "db"), 16<<10); err != nil {
				t.Fatal(err)
			}
		}), "--to", to}, "cut short"},
		"a damaged log": {[]string{"migrate", "--from", spoiled("bad-wal", flip("member/wal/*.wal", func(int64) int64 { return 100 })), "--to", to}, "damaged"},
		"no log": {[]string{"migrate", "--from", spoiled("no-wal", func(dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "member", "wal")); err != nil {
				t.Fatal(err)
			}
		}), "--to", to}, "no such file"},
		"authentication":        {[]string{"migrate", "--from", auth, "--to", to}, "--disable-auth"},
		"a damaged file":        {[]string{"migrate", "--from", damagedFile, "--to", to}, "SHA-256"},
		"restore: damaged":      {[]string{"snapshot", "restore", damagedFile, "--data-dir", to}, "SHA-256"},
		"restore: no checksum":  {[]string{"snapshot", "restore", filepath.Join(stopped, "member", "snap", "db"), "--data-dir", to}, "--skip-hash-check"},
		"restore: data there":   {[]string{"snapshot", "restore", file, "--data-dir", full}, "not empty"},
		"restore: no such name": {[]string{"snapshot", "restore", file, "--data-dir", to, "--name", "b"}, "couldn't find local name"},
		"restore: bump alone":   {[]string{"snapshot", "restore", file, "--data-dir", to, "--bump-revision", "5"}, "--mark-compacted required"},
		"restore: text":         {[]string{"snapshot", "restore", filepath.Join(full, "precious"), "--data-dir", to, "--skip-hash-check"}, "no file of etcd's"},
		"restore: other URLs":   {[]string{"snapshot", "restore", file, "--data-dir", to, "--initial-advertise-peer-urls", "http://h:1"}, "initial-advertise-peer-urls"},
		"status: damaged":       {[]string{"snapshot", "status", damagedFile}, "SHA-256"},
	} {
		t.Run(name, func(t *testing.T) {
			before := fingerprint(t, dir, running, running+".log")
			out, failed := command(t, "coterie", tt.args...)
			if !failed || !strings.Contains(out, tt.want) {
				t.Errorf("failed %v, want an error with %q, got:\n%s", failed, tt.want, out)
			}
			same(t, "files", before, fingerprint(t, dir, running, running+".log"))
		})
	}
	mustRun(t, "coterie", "migrate", "--from", auth, "--to", to, "--disable-auth")
	if p := served(t, to, startCoterie); !strings.Contains(p, "auth false") || !strings.Contains(p, "user root: [root]") {
		t.Errorf("after --disable-auth:\n%s", p)
	}
}

// withAuth makes a directory in which authentication is enabled.
func withAuth(t *testing.T, dir string) {
	t.Helper()
	s := startEtcd(t, dir)
	cli := dial(t, s)
	_, err1 := cli.UserAdd(t.Context(), "root", "pw")
	_, err2 := cli.UserGrantRole(t.Context(), "root", "root")
	_, err3 := cli.AuthEnable(t.Context())
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	cli.Close()
	stop(t, s)
}

// TestSaveLeavesNoPart: a snapshot that cannot be finished leaves nothing, and what had the name before stays.
func TestSaveLeavesNoPart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "snapshot.db")
	if err := os.WriteFile(file, []byte("the one before"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := fingerprint(t, dir)
	if out, failed := command(t, "coterie", "snapshot", "save", "--endpoints", "127.0.0.1:1", "--command-timeout", "2s", file); !failed {
		t.Errorf("it succeeded:\n%s", out)
	}
	same(t, "files", before, fingerprint(t, dir))
}

// fingerprint lists all files below a directory with the hashes of what is in them.
func fingerprint(t *testing.T, dir string, except ...string) string {
	t.Helper()
	var b strings.Builder
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, e := range except {
			if path == e && d.IsDir() {
				return filepath.SkipDir
			}
			if path == e {
				return nil
			}
		}
		if d.IsDir() {
			fmt.Fprintln(&b, path)
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		fmt.Fprintf(&b, "%s %x\n", path, h.Sum(nil))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flipByte(t *testing.T, path string, at func(size int64) int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at(int64(len(b)))] ^= 0x40
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
