package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// member is the whole of a member below its services, on one file system.
type member struct {
	log     *wal.Log
	engine  *engine.Engine
	machine *machine.Machine
	node    *Node
}

// openMember opens what fs holds; with create it makes it first.
func openMember(t testing.TB, fs vfs.FS, create bool) *member {
	t.Helper()
	m := &member{}
	var failEarly atomic.Pointer[Node]
	var err error
	m.engine, err = engine.Open(engine.Options{Dir: "engine", Merger: mvcc.Merger, FS: fs, MemTableBytes: 256 << 10, OnFatal: func(err error) {
		if n := failEarly.Load(); n != nil {
			n.Fail(err)
		}
	}})
	must(t, err)
	if create {
		must(t, machine.Bootstrap(m.engine, 1, 1, []machine.Member{{ID: 5}}))
		m.log = newLog(t, fs)
	} else {
		m.log, err = wal.Open(logOptions(fs))
		must(t, err)
	}
	m.machine, err = machine.Open(machine.Options{Engine: m.engine, Logger: zap.NewNop()})
	must(t, err)
	cfg := config(m.log, alone{m.machine})
	cfg.FlushEntries = 50
	m.node = start(t, cfg)
	failEarly.Store(m.node)
	return m
}

func (m *member) close() {
	m.node.Close()
	m.machine.Close()
	m.engine.Close() // its file system may be broken
	m.log.Close()
}

// write is one put and what is known of it.
type write struct {
	key, value string
	revision   int64 // 0: not acknowledged
}

func (m *member) put(w *write) error {
	command, err := proto.Marshal(&pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte(w.key), Value: []byte(w.value)}})
	if err != nil {
		return err
	}
	answer := make(chan machine.Result, 1)
	m.node.Propose(command, func(r machine.Result) { answer <- r })
	r := <-answer
	if r.Err != nil {
		return r.Err
	}
	w.revision = r.Response.(*pb.PutResponse).Header.Revision
	return nil
}

// checkHistory verifies that every acknowledged write happened once, at its
// revision, that no other happened twice, and that revisions have no gap.
func checkHistory(t testing.TB, m *member, writes []*write) {
	t.Helper()
	must(t, readIndex(m.node))
	byValue := map[string]*write{}
	for _, w := range writes {
		byValue[w.value] = w
	}
	last := m.machine.KV.Revision()
	next := int64(2)
	happened := map[string]bool{}
	for next <= last {
		evs, after, err := m.machine.KV.ReadEvents(next, last, func([]byte) bool { return true }, 1<<20)
		must(t, err)
		for _, re := range evs {
			if re.Revision != next || len(re.Events) != 1 {
				t.Fatalf("revision %d with %d events follows %d", re.Revision, len(re.Events), next-1)
			}
			next++
			ev := re.Events[0]
			w := byValue[string(ev.Kv.Value)]
			switch {
			case w == nil || ev.Type != mvccpb.Event_PUT || string(ev.Kv.Key) != w.key:
				t.Fatalf("revision %d holds what nobody wrote: %v", re.Revision, ev)
			case happened[w.value]:
				t.Fatalf("write %s was applied twice", w.value)
			case w.revision != 0 && w.revision != re.Revision:
				t.Fatalf("write %s was acknowledged at revision %d and is at %d", w.value, w.revision, re.Revision)
			}
			happened[w.value] = true
		}
		next = after
	}
	for _, w := range writes {
		if w.revision != 0 && !happened[w.value] {
			t.Fatalf("write %s, acknowledged at revision %d, is lost; the store ends at %d", w.value, w.revision, last)
		}
	}
	r, err := m.machine.KV.Range(context.Background(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	must(t, err)
	for _, kv := range r.Kvs {
		if w := byValue[string(kv.Value)]; w == nil || w.key != string(kv.Key) {
			t.Fatalf("key %s holds %s", kv.Key, kv.Value)
		}
	}
}

// load writes from several goroutines until stopped or failed. What is
// acknowledged after the stop does not count.
func load(m *member, round int, stop <-chan struct{}) []*write {
	var (
		mu    sync.Mutex
		all   []*write
		group sync.WaitGroup
	)
	for c := range 8 {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				w := &write{key: fmt.Sprintf("%d/%d", c, i%10), value: fmt.Sprintf("%d/%d/%d%0*d", round, c, i, (i*37)%300, 0)}
				err := m.put(w)
				select {
				case <-stop:
					w.revision = 0
				default:
				}
				mu.Lock()
				all = append(all, w)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	group.Wait()
	return all
}

// Power fails inside a random write or sync, of the log or the engine, and the
// disk keeps a random part of what was not synced.
func TestCrashAnywhere(t *testing.T) {
	seeds := uint64(25)
	if testing.Short() {
		seeds = 3 // under the race detector each takes some twenty times as long
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, 1))
			fs := vfs.NewCrashableMem()
			var writes []*write
			for round := range 4 {
				var (
					mu      sync.Mutex
					ops     int
					crashed *vfs.MemFS
					stopAt  = 1 + r.IntN(3000)
					keep    = r.IntN(101)
					stop    = make(chan struct{})
					opened  atomic.Bool
				)
				opened.Store(round > 0) // the making of a member is another test's
				m := openMember(t, errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if !opened.Load() || op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
						return nil
					}
					mu.Lock()
					defer mu.Unlock()
					if ops++; ops == stopAt {
						crashed = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: keep, RNG: r})
						close(stop)
					}
					return nil
				})), round == 0)
				opened.Store(true)
				checkHistory(t, m, writes)
				writes = append(writes, load(m, round, stop)...)
				m.close()
				if crashed == nil {
					t.Fatalf("round %d ended after %d operations, before the crash", round, ops)
				}
				fs = crashed
			}
			m := openMember(t, fs, false)
			checkHistory(t, m, writes)
			m.close()
		})
	}
}

// The disk is full, or a sync fails: no acknowledgement after it, and a member
// that starts when there is space again has all that was acknowledged.
func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		kind errorfs.OpKind
		part string
	}{
		{"log write", errorfs.OpFileWriteAt, ".wal"},
		{"log sync", errorfs.OpFileSyncData, ".wal"},
		{"engine flush", errorfs.OpFileWrite, ".sst"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := vfs.NewMem()
			var full atomic.Bool
			faulty := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
				if full.Load() && op.Kind == c.kind && strings.Contains(op.Path, c.part) {
					return syscall.ENOSPC
				}
				return nil
			}))
			m := openMember(t, faulty, true)
			var writes []*write
			for i := range 500 {
				w := &write{key: "k", value: fmt.Sprintf("%d%0200d", i, 0)}
				must(t, m.put(w))
				writes = append(writes, w)
			}
			full.Store(true)
			stop := make(chan struct{})
			writes = append(writes, load(m, 1, stop)...) // ends when every writer has failed
			<-m.node.Stopping()
			if err := m.node.Err(); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the member stopped because of %v", err)
			}
			m.close()
			full.Store(false)
			m = openMember(t, faulty, false)
			checkHistory(t, m, writes)
			must(t, m.put(&write{key: "k", value: "again"}))
			m.close()
		})
	}
}

// alone is the machine of a member that nobody sends a snapshot.
type alone struct{ *machine.Machine }

func (alone) Install(index, _ uint64) error { return fmt.Errorf("a snapshot of entry %d", index) }
