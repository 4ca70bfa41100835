package auth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestErrors holds each sentinel to the text of the error that etcd's clients
// know, or to a text of its own where theirs differs or they know none.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		client error  // what clients see for it
		text   string // if it is not the client's with another prefix
	}{
		{err: ErrRootUserNotExist, client: rpctypes.ErrRootUserNotExist},
		{err: ErrRootRoleNotExist, client: rpctypes.ErrRootRoleNotExist},
		{err: ErrUserAlreadyExist, client: rpctypes.ErrUserAlreadyExist, text: "auth: user already exists"},
		{err: ErrUserEmpty, client: rpctypes.ErrUserEmpty},
		{err: ErrUserNotFound, client: rpctypes.ErrUserNotFound, text: "auth: user not found"},
		{err: ErrRoleAlreadyExist, client: rpctypes.ErrRoleAlreadyExist, text: "auth: role already exists"},
		{err: ErrRoleNotFound, client: rpctypes.ErrRoleNotFound, text: "auth: role not found"},
		{err: ErrRoleEmpty, client: rpctypes.ErrRoleEmpty},
		{err: ErrPermissionNotGiven, client: rpctypes.Error(rpctypes.ErrGRPCPermissionNotGiven), text: "auth: permission not given"},
		{err: ErrAuthFailed, client: rpctypes.ErrAuthFailed},
		{err: ErrPermissionDenied, client: rpctypes.ErrPermissionDenied},
		{err: ErrRoleNotGranted, client: rpctypes.ErrRoleNotGranted},
		{err: ErrPermissionNotGranted, client: rpctypes.ErrPermissionNotGranted},
		{err: ErrAuthNotEnabled, client: rpctypes.ErrAuthNotEnabled},
		{err: ErrAuthOldRevision, client: rpctypes.ErrAuthOldRevision, text: "auth: revision in header is old"},
		{err: ErrInvalidAuthMgmt, client: rpctypes.ErrInvalidAuthMgmt},
		{err: ErrNoPasswordUser, text: "auth: authentication failed, password was given for no password user"},
		{err: ErrEnforcementUnsupported, text: "coterie: enabling authentication is not supported by this version"},
		{err: ErrPasswordNotHashed, text: "coterie: a password was proposed without being hashed"},
	} {
		want := c.text
		if want == "" {
			want = "auth: " + strings.TrimPrefix(c.client.Error(), "etcdserver: ")
		}
		if got := c.err.Error(); got != want {
			t.Errorf("text %q, want %q", got, want)
		}
	}
}

func newStore(t *testing.T) (*engine.Engine, *Store) {
	t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "db", FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eng.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(eng, Options{Enforced: true})
	if err != nil {
		t.Fatal(err)
	}
	return eng, s
}

// apply applies the commands as one committed batch and returns the errors.
func apply(t *testing.T, eng *engine.Engine, s *Store, commands ...*pb.InternalRaftRequest) []error {
	t.Helper()
	b := eng.NewBatch()
	defer b.Close()
	var errs []error
	for _, c := range commands {
		_, err, handled := s.Apply(b, c)
		if !handled {
			t.Fatalf("not handled: %v", c)
		}
		errs = append(errs, err)
	}
	if err := eng.Commit(b); err != nil {
		t.Fatal(err)
	}
	return errs
}

func TestLongNames(t *testing.T) {
	eng, s := newStore(t)
	longest := strings.Repeat("n", maxNameLen)
	got := apply(t, eng, s,
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: longest}},
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: longest}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: longest + "n"}},
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: longest + "n"}},
	)
	want := []error{nil, nil, ErrInvalidAuthMgmt, ErrInvalidAuthMgmt}
	for i := range want {
		if !errors.Is(got[i], want[i]) {
			t.Errorf("command %d: error %v, want %v", i, got[i], want[i])
		}
	}
}

func TestHashPassword(t *testing.T) {
	for _, c := range []struct{ cost, want int }{
		{bcrypt.MinCost, bcrypt.MinCost},
		{bcrypt.MinCost + 1, bcrypt.MinCost + 1},
		{bcrypt.MinCost - 1, bcrypt.DefaultCost},
		{bcrypt.MaxCost + 1, bcrypt.DefaultCost},
	} {
		encoded, err := HashPassword("secret", c.cost)
		if err != nil {
			t.Fatal(err)
		}
		hash, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bcrypt.Cost(hash); got != c.want || err != nil {
			t.Errorf("cost %d: hashed with %d, want %d (%v)", c.cost, got, c.want, err)
		}
		if err := bcrypt.CompareHashAndPassword(hash, []byte("secret")); err != nil {
			t.Errorf("cost %d: %v", c.cost, err)
		}
	}
	if _, err := HashPassword(strings.Repeat("p", 73), bcrypt.MinCost); !errors.Is(err, bcrypt.ErrPasswordTooLong) {
		t.Errorf("73 bytes: error %v, want %v", err, bcrypt.ErrPasswordTooLong)
	}
}

// TestSpansAgainstSets compares merging and covering with sets of single keys,
// on permissions over a small alphabet.
func TestSpansAgainstSets(t *testing.T) {
	letters := []string{"a", "b", "c", "d"}
	var begins, probes []string
	for _, l := range letters {
		begins = append(begins, l, l+"\x00", l+"m")
	}
	// Between two of these keys no range begins or ends, and so none does
	// above the last: they stand for all keys.
	for _, b := range begins {
		probes = append(probes, b, b+"\x00")
	}
	ends := append([]string{"", unbounded}, letters...)
	rng := rand.New(rand.NewPCG(1, 0))
	pick := func(from []string) string { return from[rng.IntN(len(from))] }
	in := func(key, begin, rangeEnd string) bool {
		switch rangeEnd {
		case "":
			return key == begin
		case unbounded:
			return key >= begin
		}
		return key >= begin && key < rangeEnd
	}
	for range 5000 {
		st := &state{enabled: true, revision: 1}
		allowed := map[string]bool{}
		u := &user{name: "u"}
		for i := range 1 + rng.IntN(3) {
			r := newRole(fmt.Sprintf("r%d", i), nil)
			for range rng.IntN(4) {
				p := permission{authpb.Permission_READ, pick(begins), pick(ends)}
				if !validRange([]byte(p.key), []byte(p.rangeEnd)) {
					continue
				}
				r = newRole(r.name, r.permsWith(p))
				for _, k := range probes {
					allowed[k] = allowed[k] || in(k, p.key, p.rangeEnd)
				}
			}
			for i, s := range r.read {
				if i > 0 && (r.read[i-1].end == "" || r.read[i-1].end >= s.begin) {
					t.Fatalf("spans %q of role %v touch", r.read, r.message())
				}
			}
			st.roles = append(st.roles, r)
			u.roles = append(u.roles, r.name)
		}
		st.users = []*user{u}
		for range 10 {
			key, rangeEnd := pick(begins), pick(ends)
			if !validRange([]byte(key), []byte(rangeEnd)) {
				continue
			}
			want := true
			for _, k := range probes {
				want = want && (!in(k, key, rangeEnd) || allowed[k])
			}
			err := st.permit("u", 1, []byte(key), []byte(rangeEnd), (*role).readable)
			if got := err == nil; got != want {
				t.Fatalf("permit from %q to %q: %v, want %t; roles %v", key, rangeEnd, err, want, st.export().Roles)
			}
		}
	}
}

// TestReadersSeeWholeStates reads while the apply goroutine moves one role
// between two users, and must never see a state that no command left.
func TestReadersSeeWholeStates(t *testing.T) {
	eng, s := newStore(t)
	apply(t, eng, s,
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "a"}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "b"}},
	)
	base := s.Revision()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				e := s.Export()
				// Four commands make a round: grant a, revoke a, grant b, revoke b.
				step := (e.Revision - base) % 4
				if a, b := len(e.Users[0].Roles), len(e.Users[1].Roles); a != boolToInt(step == 1) || b != boolToInt(step == 3) {
					t.Errorf("at revision %d users have %d and %d roles", e.Revision, a, b)
					return
				}
			}
		})
	}
	for range 500 {
		for _, name := range []string{"a", "b"} {
			apply(t, eng, s,
				&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: name, Role: "r"}},
				&pb.InternalRaftRequest{AuthUserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: name, Role: "r"}},
			)
		}
	}
	close(stop)
	readers.Wait()
	if got, want := s.Revision(), base+2000; got != want {
		t.Errorf("revision %d, want %d", got, want)
	}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestExportIsACopy changes what Export returned and looks again.
func TestExportIsACopy(t *testing.T) {
	eng, s := newStore(t)
	apply(t, eng, s,
		&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "r"}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", HashedPassword: "aGFzaA=="}},
		&pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}},
	)
	want := exportText(s.Export())
	e := s.Export()
	e.Users[0].Name[0], e.Users[0].Password[0], e.Users[0].Roles[0] = 'x', 'x', "x"
	e.Roles[0].Name[0] = 'x'
	if got := exportText(s.Export()); got != want {
		t.Errorf("state is now\n%s\nwant\n%s", got, want)
	}
}

// FuzzDecode feeds the decoder a record after valid ones. It must not panic,
// and what it accepts must encode to what it decodes to.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("uc"), encodeConfig(true, 7))
	f.Add([]byte("urs"), encodeMessage(newRole("s", []permission{{authpb.Permission_WRITE, "a", "b"}, {authpb.Permission_READ, "c", ""}}).message()))
	f.Add([]byte("uuv"), encodeMessage((&user{name: "v", password: []byte("hash"), roles: []string{"r", "root"}}).message()))
	f.Add([]byte("uuv"), []byte{formatVersion, 0x1a, 0xff})
	f.Add([]byte("u"), []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		st := &state{revision: 1, roles: []*role{newRole("r", nil)}}
		if st.decode(key, value) != nil {
			return
		}
		again := &state{}
		for _, r := range records(st) {
			if err := again.decode(r[0], r[1]); err != nil {
				t.Fatalf("record %q from %q: %v", r, value, err)
			}
		}
		if got, want := exportText(again.export()), exportText(st.export()); got != want {
			t.Fatalf("decoded to\n%s\nencoded and decoded again\n%s", want, got)
		}
	})
}

// records returns the keys and values of st in order.
func records(st *state) [][2][]byte {
	rs := [][2][]byte{{configKey(), encodeConfig(st.enabled, st.revision)}}
	for _, r := range st.roles {
		rs = append(rs, [2][]byte{roleKey(r.name), encodeMessage(r.message())})
	}
	for _, u := range st.users {
		rs = append(rs, [2][]byte{userKey(u.name), encodeMessage(u.message())})
	}
	return rs
}

// TestUncommittedIsGone drops the batch of a command, as a crash would.
func TestUncommittedIsGone(t *testing.T) {
	eng, s := newStore(t)
	apply(t, eng, s, &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "kept"}})
	b := eng.NewBatch()
	if _, err, _ := s.Apply(b, &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "lost"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(eng, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if e := s.Export(); e.Revision != 2 || len(e.Roles) != 1 || string(e.Roles[0].Name) != "kept" {
		t.Errorf("reopened as\n%s", exportText(e))
	}
}
