package auth

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/storage/engine"
)

// TestScripts runs testdata/*.txt. The commands are described at their methods.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		w := newWorld(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "open":
				return w.open(d)
			case "apply":
				return w.apply(d)
			case "permit":
				return w.permit(d)
			case "check-password":
				return w.checkPassword(d)
			case "export":
				return w.export(d)
			case "records":
				return w.records()
			case "write":
				return w.write(d)
			}
			d.Fatalf(t, "unknown command")
			return ""
		})
	})
}

// world is an engine in memory with a store on it.
type world struct {
	t   *testing.T
	fs  vfs.FS
	eng *engine.Engine
	s   *Store
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, fs: vfs.NewMem()}
	w.restart()
	t.Cleanup(func() {
		if err := w.eng.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// restart leaves of the engine what is on disk.
func (w *world) restart() {
	if w.eng != nil {
		w.must(w.eng.Flush())
		w.must(w.eng.Close())
	}
	eng, err := engine.Open(engine.Options{Dir: "db", FS: w.fs})
	w.must(err)
	w.eng = eng
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open [enforced]: opens the store again, after a restart of the engine.
func (w *world) open(d *datadriven.TestData) string {
	w.restart()
	s, err := Open(w.eng, Options{Enforced: d.HasArg("enforced")})
	if err != nil {
		return "error: " + oneSpace(err.Error())
	}
	w.s = s
	return fmt.Sprintf("enabled %t, revision %d", s.Enabled(), s.Revision())
}

// apply: applies a command for each line, as one batch, and prints response or
// error, and the auth revision where it moved.
func (w *world) apply(d *datadriven.TestData) string {
	var out strings.Builder
	b := w.eng.NewBatch()
	defer b.Close()
	for line := range strings.Lines(d.Input) {
		var r pb.InternalRaftRequest
		if err := prototext.Unmarshal([]byte(line), &r); err != nil {
			d.Fatalf(w.t, "%v", err)
		}
		before := w.s.Revision()
		resp, err, handled := w.s.Apply(b, &r)
		switch {
		case !handled:
			out.WriteString("not handled")
		case err != nil:
			fmt.Fprintf(&out, "error: %v", err)
			if resp != nil {
				d.Fatalf(w.t, "response %v beside the error %v", resp, err)
			}
		default:
			out.WriteString(text(resp))
		}
		if after := w.s.Revision(); after != before {
			fmt.Fprintf(&out, " -> revision %d", after)
		}
		out.WriteByte('\n')
	}
	w.must(w.eng.Commit(b))
	return out.String()
}

// text prints a message on one line.
func text(m proto.Message) string {
	return "{" + oneSpace(prototext.MarshalOptions{}.Format(m)) + "}"
}

// oneSpace makes spaces single, which the protobuf packages vary on purpose.
func oneSpace(s string) string { return strings.Join(strings.Fields(s), " ") }

// permit: each line is "read|write|admin user revision [key [range-end]]", the
// last two Go-quoted; prints the verdict.
func (w *world) permit(d *datadriven.TestData) string {
	var out strings.Builder
	for line := range strings.Lines(d.Input) {
		line = strings.TrimSpace(line)
		f := strings.Fields(line)
		rev, err := strconv.ParseUint(f[2], 10, 64)
		w.must(err)
		var keys [2][]byte
		for i, q := range f[3:] {
			s, err := strconv.Unquote(q)
			w.must(err)
			keys[i] = []byte(s)
		}
		user := strings.Trim(f[1], `"`)
		switch f[0] {
		case "read":
			err = w.s.PermitRead(user, rev, keys[0], keys[1])
		case "write":
			err = w.s.PermitWrite(user, rev, keys[0], keys[1])
		case "admin":
			err = w.s.PermitAdmin(user)
		default:
			d.Fatalf(w.t, "unknown check %q", f[0])
		}
		verdict := "yes"
		if err != nil {
			verdict = err.Error()
		}
		fmt.Fprintf(&out, "%s: %s\n", line, verdict)
	}
	return out.String()
}

// check-password user=... password=...
func (w *world) checkPassword(d *datadriven.TestData) string {
	var user, password string
	d.ScanArgs(w.t, "user", &user)
	d.ScanArgs(w.t, "password", &password)
	rev, err := w.s.CheckPassword(user, password)
	if err != nil {
		return "error: " + err.Error()
	}
	return fmt.Sprintf("right at revision %d", rev)
}

// export: prints the state, having compared the two ways to it.
func (w *world) export(d *datadriven.TestData) string {
	snap := w.eng.NewSnapshot()
	defer snap.Close()
	stored, err := ExportSnapshot(snap)
	w.must(err)
	out := exportText(stored)
	if now := exportText(w.s.Export()); now != out {
		d.Fatalf(w.t, "in memory:\n%s\nstored:\n%s", now, out)
	}
	return out
}

func exportText(e *Export) string {
	var out strings.Builder
	fmt.Fprintf(&out, "enabled %t, revision %d\n", e.Enabled, e.Revision)
	for _, u := range e.Users {
		fmt.Fprintf(&out, "user %s\n", text(u))
	}
	for _, r := range e.Roles {
		fmt.Fprintf(&out, "role %s\n", text(r))
	}
	return out.String()
}

// records: prints the engine's records.
func (w *world) records() string {
	it, err := w.eng.NewIter(nil, nil)
	w.must(err)
	var out strings.Builder
	for it.First(); it.Valid(); it.Next() {
		fmt.Fprintf(&out, "%q: % x\n", it.Key(), it.Value())
	}
	w.must(errors.Join(it.Error(), it.Close()))
	return out.String()
}

// write: each line is a key and a value, Go-quoted, written as records; a key
// alone is deleted.
func (w *world) write(d *datadriven.TestData) string {
	b := w.eng.NewBatch()
	defer b.Close()
	for line := range strings.Lines(d.Input) {
		var kv []string
		for _, q := range strings.Fields(line) {
			s, err := strconv.Unquote(q)
			w.must(err)
			kv = append(kv, s)
		}
		if len(kv) == 1 {
			w.must(b.Delete([]byte(kv[0]), nil))
			continue
		}
		w.must(b.Set([]byte(kv[0]), []byte(kv[1]), nil))
	}
	w.must(w.eng.Commit(b))
	return ""
}
