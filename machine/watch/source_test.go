package watch

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/machine/mvcc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeSource is a key space in memory that never really forgets, so that a
// test can compare with what it pretends to have compacted.
type fakeSource struct {
	mu      sync.Mutex            // guards the fields below
	history []mvcc.RevisionEvents // history[i] is revision i+2
	live    map[string]*mvccpb.KeyValue
	compact int64
	// fail is returned by ReadEvents.
	fail error
	// onRead is called at the end of ReadEvents.
	onRead func()
	// reads counts the calls of ReadEvents.
	reads int
}

func newFakeSource() *fakeSource { return &fakeSource{live: map[string]*mvccpb.KeyValue{}} }

// write makes one revision of ops: "k=v" puts, "k" deletes.
func (f *fakeSource) write(ops ...string) mvcc.RevisionEvents {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := mvcc.RevisionEvents{Revision: int64(len(f.history)) + 2}
	for _, op := range ops {
		key, value, put := strings.Cut(op, "=")
		kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: r.Revision}
		if !put {
			delete(f.live, key)
			r.Events = append(r.Events, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: kv})
			continue
		}
		kv.CreateRevision, kv.Version, kv.Value = r.Revision, 1, []byte(value)
		if old := f.live[key]; old != nil {
			kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
		}
		f.live[key] = kv
		r.Events = append(r.Events, &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: kv})
	}
	f.history = append(f.history, r)
	return r
}

func (f *fakeSource) compactTo(rev int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.compact = max(f.compact, rev)
}

func (f *fakeSource) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fakeSource) readCount() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (f *fakeSource) Revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.history)) + 1
}

func (f *fakeSource) CompactRevision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.compact
}

func (f *fakeSource) ReadEvents(from, to int64, match func(key []byte) bool, maxBytes int) ([]mvcc.RevisionEvents, int64, error) {
	f.mu.Lock()
	f.reads++
	compact, fail, onRead := f.compact, f.fail, f.onRead
	history := f.history[:min(int(to)-1, len(f.history))]
	f.mu.Unlock()
	if onRead != nil {
		defer onRead()
	}
	if fail != nil {
		return nil, from, fail
	}
	if from < compact {
		return nil, from, mvcc.ErrCompacted
	}
	var evs []mvcc.RevisionEvents
	for _, r := range history[max(0, from-2):] {
		if maxBytes <= 0 {
			return evs, r.Revision, nil
		}
		some := mvcc.RevisionEvents{Revision: r.Revision}
		for _, ev := range r.Events {
			if match(ev.Kv.Key) {
				some.Events = append(some.Events, ev)
				maxBytes -= len(ev.Kv.Key) + len(ev.Kv.Value)
			}
		}
		if len(some.Events) > 0 {
			evs = append(evs, some)
		}
	}
	return evs, to + 1, nil
}

func (f *fakeSource) PrevKV(ev *mvccpb.Event) (*mvccpb.KeyValue, error) {
	if ev.Kv.ModRevision-1 < f.CompactRevision() {
		return nil, nil
	}
	return f.before(ev), nil
}

// before returns the key's state before ev, compacted or not.
func (f *fakeSource) before(ev *mvccpb.Event) *mvccpb.KeyValue {
	f.mu.Lock()
	defer f.mu.Unlock()
	for rev := ev.Kv.ModRevision - 1; rev >= 2; rev-- {
		for _, old := range slices.Backward(f.history[rev-2].Events) {
			if string(old.Kv.Key) != string(ev.Kv.Key) {
				continue
			}
			if old.Type == mvccpb.Event_DELETE {
				return nil
			}
			return old.Kv
		}
	}
	return nil
}

// showEvent writes an event as the scripts do.
func showEvent(ev *mvccpb.Event) string {
	var b strings.Builder
	if ev.Type == mvccpb.Event_DELETE {
		fmt.Fprintf(&b, "del %s", ev.Kv.Key)
	} else {
		fmt.Fprintf(&b, "put %s=%s", ev.Kv.Key, ev.Kv.Value)
	}
	fmt.Fprintf(&b, "@%d", ev.Kv.ModRevision)
	if ev.PrevKv != nil {
		fmt.Fprintf(&b, " was %s@%d", ev.PrevKv.Value, ev.PrevKv.ModRevision)
	}
	return b.String()
}
