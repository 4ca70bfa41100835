package replica

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// member is a data directory and the replica on it, without a consensus.
type member struct {
	*Replica
	t   *testing.T
	dir *Dir
}

func newMember(t *testing.T, fs vfs.FS, id uint64) *member {
	t.Helper()
	dir, err := Open(Options{Path: fmt.Sprint("member", id), FS: fs, Logger: zap.NewNop()}, func() (*Founding, error) {
		return &Founding{ClusterID: 1, MemberID: id, Members: []machine.Member{{ID: 1}, {ID: 2}}}, nil
	})
	must(t, err)
	open := func(eng *engine.Engine) (*machine.Machine, error) {
		return machine.Open(machine.Options{Engine: eng, Logger: zap.NewNop()})
	}
	m, err := open(dir.Engine)
	must(t, err)
	must(t, dir.MakeWritable())
	r := New(dir, m, Config{Logger: zap.NewNop(), Open: open, Switched: func(*machine.Machine) {}, Changed: func([]machine.Change) {}})
	t.Cleanup(func() { must(t, errors.Join(r.Close(false), dir.Close())) })
	return &member{r, t, dir}
}

// put applies an entry for each of the values.
func (m *member) put(values ...string) {
	m.t.Helper()
	for _, v := range values {
		command, err := proto.Marshal(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("k"), Value: []byte(v)}})
		must(m.t, err)
		_, err = m.Apply([]machine.Entry{{Index: m.Applied() + 1, Term: 2, Commands: [][]byte{command}}})
		must(m.t, err)
	}
}

// installOf replaces the state of m by that of another member, as a snapshot brings it.
func (m *member) installOf(other *member) {
	m.t.Helper()
	c, err := other.Take()
	must(m.t, err)
	defer c.Release()
	into, err := m.Begin(c.Index)
	must(m.t, err)
	for _, name := range c.Files {
		must(m.t, vfs.Copy(m.dir.fs, filepath.Join(c.Dir, name), filepath.Join(into, name)))
	}
	must(m.t, m.Complete(c.Index, into, func() (bool, error) { return true, m.Install(c.Index, c.Term) }))
}

// events reads from a stream until it has events up to a revision, or ends.
func events(t *testing.T, s *watch.Stream, last int64) (revs []int64, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(revs) == 0 || revs[len(revs)-1] < last {
		rs, err := s.Next(ctx)
		if err != nil {
			return revs, err
		}
		for i := range rs.Len() {
			b, err := rs.AppendMessage(nil, i)
			must(t, err)
			var r pb.WatchResponse
			must(t, proto.Unmarshal(b, &r))
			for _, ev := range r.Events {
				revs = append(revs, ev.Kv.ModRevision)
			}
		}
	}
	return revs, nil
}

// TestASnapshotEndsTheStreamsOfTheStateBefore: a member that was cut off is sent a
// snapshot while it is watched. No stream carries events of the old state and then
// of the new one: those that are open end, and who resumes where he was gets the rest,
// once and in order.
func TestASnapshotEndsTheStreamsOfTheStateBefore(t *testing.T) {
	fs := vfs.NewMem()
	ahead, behind := newMember(t, fs, 1), newMember(t, fs, 2)
	for _, m := range []*member{ahead, behind} {
		m.put("2", "3", "4")
	}
	s := behind.Machine().Watch.NewStream()
	defer s.Close()
	must(t, s.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 2}))
	if got, err := events(t, s, 4); err != nil || fmt.Sprint(got) != "[2 3 4]" {
		t.Fatal(got, err)
	}
	ahead.put("5", "6", "7", "8")
	old := behind.Machine()
	ended := make(chan error, 1)
	go func() { // ends with the stream
		got, err := events(t, s, 1<<60)
		if len(got) > 0 {
			t.Errorf("the stream of the old state went on with revisions %v", got)
		}
		ended <- err
	}()
	behind.installOf(ahead)
	if err := <-ended; !errors.Is(err, watch.ErrClosed) {
		t.Errorf("the stream of the old state: %v, want %v", err, watch.ErrClosed)
	}
	if late := old.Watch.NewStream(); !errors.Is(late.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k")}), watch.ErrClosed) {
		t.Error("a stream can be opened on the state that was replaced")
	}
	again := behind.Machine().Watch.NewStream()
	defer again.Close()
	must(t, again.Create(t.Context(), &pb.WatchCreateRequest{Key: []byte("k"), StartRevision: 5}))
	behind.put("9")
	if got, err := events(t, again, 9); err != nil || fmt.Sprint(got) != "[5 6 7 8 9]" {
		t.Errorf("resumed, revisions %v, %v", got, err)
	}
	// The applied index is that of the state, not the one that this member had.
	if got := behind.Applied(); got != ahead.Applied()+1 || behind.Machine().KV.Revision() != 9 {
		t.Errorf("applied %d, revision %d", got, behind.Machine().KV.Revision())
	}
}

// Who asks for the engine when the replica has been closed (DBSize of a request that Close has given up waiting for,
// DurableIndex of a goroutine that a disk has held) must be told so, not run for ever.
func TestAcquireEndsWhenTheReplicaIsClosed(t *testing.T) {
	var m *member
	t.Cleanup(func() { // after the replica has been closed
		told := make(chan error, 1)
		go func() {
			_, err := m.DurableIndex()
			told <- err
		}()
		select {
		case err := <-told:
			if !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		case <-time.After(2 * time.Second):
			t.Error("DurableIndex of a closed replica has been running for two seconds, with a whole processor")
			m.current.Load().files.Unlock() // lets it end
		}
	})
	m = newMember(t, vfs.NewMem(), 1)
}
