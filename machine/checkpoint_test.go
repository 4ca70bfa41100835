package machine

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
)

// openCheckpoint opens what a crash leaves of a checkpoint.
func (h *harness) openCheckpoint(dir string) *harness {
	h.t.Helper()
	c := &harness{t: h.t, fs: h.fs.CrashClone(vfs.CrashCloneCfg{})}
	var err error
	c.engine, err = engine.Open(engine.Options{Dir: dir, Merger: mvcc.Merger, FS: c.fs, MustExist: true})
	must(h.t, err)
	c.Machine, err = Open(Options{Engine: c.engine, Logger: zap.NewNop()})
	must(h.t, err)
	return c
}

func (h *harness) authState() string {
	users := h.Auth.Export()
	return fmt.Sprintf("%v %d %v %v", users.Enabled, users.Revision, users.Users, users.Roles)
}

func TestCheckpointIsTheWholeState(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	h.apply(grant(7, 60), put("a", "1", 7), put("b", "2", 0))
	h.apply(&pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: "reader"}},
		&pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "u", Options: nil, HashedPassword: "aGFzaA=="}})
	h.apply(&pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 7, Remaining_TTL: 11}}}})
	h.apply(alarm(pb.AlarmRequest_ACTIVATE, 6, pb.AlarmType_CORRUPT))
	must(t, h.change(RemoveMember, Member{ID: 6}))
	must(t, h.change(AddMember, Member{ID: 7, PeerURLs: []string{"http://c"}, IsLearner: true}))
	state, err := h.Checkpoint("checkpoint")
	must(t, err)
	if state.Index != h.Applied() || state.Term != 2 || !slices.Equal(state.Voters, []uint64{5}) || !slices.Equal(state.Learners, []uint64{7}) {
		t.Errorf("it says of itself %+v", state)
	}
	want, wantAuth := h.state(), h.authState()
	if users := h.Auth.Export(); len(users.Users) != 1 || len(users.Roles) != 1 {
		t.Fatalf("users %v and roles %v", users.Users, users.Roles)
	}
	h.apply(put("later", "1", 0))
	c := h.openCheckpoint("checkpoint")
	defer c.close()
	if got := c.state(); got != want {
		t.Errorf("the checkpoint holds\n%s\nwant\n%s", got, want)
	}
	if got := c.authState(); got != wantAuth {
		t.Errorf("the checkpoint's users are\n%s\nwant\n%s", got, wantAuth)
	}
	c.log = nil
	c.apply(alarm(pb.AlarmRequest_DEACTIVATE, 6, pb.AlarmType_CORRUPT), put("its own", "1", 0))
}

// TestCheckpointHasAnImageOfTheIndex: who is sent it need not read all of it.
func TestCheckpointHasAnImageOfTheIndex(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	var puts []*pb.InternalRaftRequest
	for i := range 5000 {
		puts = append(puts, put(fmt.Sprint(i), "v", 0))
	}
	h.apply(puts...)
	_, err := h.Checkpoint("checkpoint")
	must(t, err)
	c := h.openCheckpoint("checkpoint")
	c.Machine.Close()
	core, logs := observer.New(zapcore.InfoLevel)
	c.Machine, err = Open(Options{Engine: c.engine, KV: mvcc.Options{Logger: zap.New(core)}})
	must(t, err)
	defer c.close()
	if n := logs.FilterField(zap.Int64("image-revision", h.KV.Revision())).Len(); n != 1 {
		t.Errorf("it was not loaded from an image: %v", logs.All())
	}
}

func TestCheckpointWhileEntriesAreApplied(t *testing.T) {
	h := newHarness(t)
	defer h.close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ended by stop, awaited by stopped
		defer close(stopped)
		for i := int64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
				h.apply(grant(i, 60), put(fmt.Sprintf("key%06d", i), "v", i))
				if i%10 == 0 { // the members tell the index
					if err := h.change(UpdateMember, Member{ID: 6, PeerURLs: []string{fmt.Sprint("http://", i)}}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}
	}()
	for n := range 4 {
		dir := fmt.Sprint("checkpoint", n)
		for start := h.Applied(); h.Applied() < start+50; {
			runtime.Gosched()
		}
		before := h.Applied()
		state, err := h.Checkpoint(dir)
		must(t, err)
		c := h.openCheckpoint(dir)
		if state.Index < before || state.Index != c.Applied() || state.Term != 2 {
			t.Errorf("it says that it holds entry %d of term %d, and holds %d; %d was applied before", state.Index, state.Term, c.Applied(), before)
		}
		rev := c.KV.Revision()
		got, _, _, err := c.KV.HashKV(context.Background(), rev)
		must(t, err)
		for h.KV.Revision() < rev { // what is committed is not at once published
			runtime.Gosched()
		}
		want, _, _, err := h.KV.HashKV(context.Background(), rev)
		must(t, err)
		if got != want {
			t.Errorf("at revision %d the hashes are %08x and %08x", rev, got, want)
		}
		if keys := rev - 1; int64(c.Leases.Len()) != keys {
			t.Errorf("%d leases and %d keys", c.Leases.Len(), keys)
		}
		c.close()
	}
	close(stop)
	<-stopped
}

func TestStateOfAJoiner(t *testing.T) {
	h := &harness{t: t, fs: newHarnessFS()}
	h.openEngine()
	must(t, BootstrapJoiner(h.engine, []Member{{ID: 5, PeerURLs: []string{"http://a"}}}))
	h.open()
	defer h.close()
	s, err := ReadState(h.engine)
	must(t, err)
	if s.Index != 0 || s.Term != 0 || len(s.Voters)+len(s.Learners) != 0 {
		t.Errorf("got %+v", s)
	}
	if got := h.Members.Voters(); !slices.Equal(got, []uint64{5}) {
		t.Errorf("it was told of %v", got)
	}
}
