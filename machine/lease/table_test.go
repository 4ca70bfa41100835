package lease

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/storage/engine"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScripts runs the transcripts in testdata; -rewrite renews their output.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := newScript(t)
		datadriven.RunTest(t, path, s.run)
	})
}

// script is one table under test, on a file system that survives reopening.
type script struct {
	t     *testing.T
	fs    vfs.FS
	eng   *engine.Engine
	table *Table
	feed  *Feed
}

func newScript(t *testing.T) *script {
	s := &script{t: t, fs: vfs.NewMem()}
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *script) open() {
	s.t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "db", FS: s.fs})
	if err != nil {
		s.t.Fatal(err)
	}
	s.eng = eng
	if s.table, err = Open(eng); err != nil {
		s.t.Fatal(err)
	}
	s.feed = s.table.Follow()
}

func (s *script) close() {
	s.t.Helper()
	if err := errors.Join(s.eng.Flush(), s.eng.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// apply runs one command in a batch of its own.
func (s *script) apply(f func(b *pebble.Batch) error) error {
	b := s.eng.NewBatch()
	return errors.Join(f(b), s.eng.Commit(b))
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	var id, ttl int64
	var key string
	d.MaybeScanArgs(t, "id", &id)
	d.MaybeScanArgs(t, "ttl", &ttl)
	d.MaybeScanArgs(t, "key", &key)
	switch d.Cmd {
	case "grant":
		return result(s.apply(func(b *pebble.Batch) error { return s.table.Grant(b, id, ttl) }))
	case "checkpoint":
		return result(s.apply(func(b *pebble.Batch) error { return s.table.Checkpoint(b, id, ttl) }))
	case "clock":
		var to string
		d.ScanArgs(t, "to", &to)
		at, err := time.ParseDuration(to)
		if err != nil {
			t.Fatal(err)
		}
		err = s.apply(func(b *pebble.Batch) error { return s.table.Checkpoint(b, 0, int64(at)) })
		return fmt.Sprintf("%v %v\n", s.table.Clock(), err)
	case "revoke":
		var keys []string
		err := s.apply(func(b *pebble.Batch) (err error) {
			keys, err = s.table.Revoke(b, id)
			return err
		})
		if err != nil {
			return result(err)
		}
		return fmt.Sprintf("keys %q\n", keys)
	case "attach":
		s.table.Attach(id, key)
	case "detach":
		s.table.Detach(id, key)
	case "reopen":
		s.close()
		s.open()
	case "feed":
		ids, all := s.feed.Take(nil)
		return fmt.Sprintf("%v all=%v\n", ids, all)
	case "list":
		return s.list()
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	return "ok\n"
}

func result(err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	return "ok\n"
}

func (s *script) list() string {
	var b strings.Builder
	for _, l := range s.table.All() {
		got, ok := s.table.Get(l.ID)
		if !ok || got != l || !s.table.Has(l.ID) {
			s.t.Errorf("lease %d: All has %+v, Get %+v, %v", l.ID, l, got, ok)
		}
		fmt.Fprintf(&b, "%d: ttl=%d checkpoint=%d remaining=%d keys=%q\n", l.ID, l.TTL, l.RemainingTTL, l.Remaining(), s.table.Keys(l.ID))
	}
	if b.Len() == 0 {
		return "none\n"
	}
	return b.String()
}

func TestAttachToUnknownLeasePanics(t *testing.T) {
	s := newScript(t)
	defer func() {
		if recover() == nil {
			t.Error("Attach to a lease that does not exist went unnoticed")
		}
	}()
	s.table.Attach(1, "k")
}

func TestIncarnationsDiffer(t *testing.T) {
	s := newScript(t)
	grant := func() Lease {
		if err := s.apply(func(b *pebble.Batch) error { return s.table.Grant(b, 7, 10) }); err != nil {
			t.Fatal(err)
		}
		l, _ := s.table.Get(7)
		return l
	}
	first := grant()
	if err := s.apply(func(b *pebble.Batch) error { _, err := s.table.Revoke(b, 7); return err }); err != nil {
		t.Fatal(err)
	}
	if second := grant(); first.Incarnation == second.Incarnation {
		t.Errorf("both leases are incarnation %d", first.Incarnation)
	}
}

func TestOpenRefusesDamage(t *testing.T) {
	s := newScript(t)
	if err := s.apply(func(b *pebble.Batch) error { return b.Set(encodeKey(5), []byte{9}, nil) }); err != nil {
		t.Fatal(err)
	}
	_, err := Open(s.eng)
	want := "read leases: record 09 of lease 0000000000000005: format version 9, this release reads versions up to 2"
	if err == nil || err.Error() != want {
		t.Errorf("Open returned %v, want %s", err, want)
	}
}

func TestFeedOverflows(t *testing.T) {
	table := &Table{leases: map[int64]*record{}}
	f := table.Follow()
	for id := range int64(maxChanges) {
		table.tell(id + 1)
	}
	if ids, all := f.Take(nil); len(ids) != maxChanges || all {
		t.Fatalf("a full feed gave %d ids, all=%v", len(ids), all)
	}
	for id := range int64(maxChanges + 1) {
		table.tell(id + 1)
	}
	if ids, all := f.Take(nil); len(ids) != 0 || !all {
		t.Fatalf("an overfull feed gave %d ids, all=%v", len(ids), all)
	}
	table.tell(3)
	if ids, all := f.Take([]int64{1}); fmt.Sprint(ids) != "[1 3]" || all {
		t.Fatalf("after that the feed gave %v, all=%v", ids, all)
	}
	f.Close()
	table.tell(4)
	if ids, _ := f.Take(nil); len(ids) != 0 {
		t.Fatalf("a closed feed gave %v", ids)
	}
}

// TestReadersRunBesideApply has something to say under the race detector.
func TestReadersRunBesideApply(t *testing.T) {
	s := newScript(t)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, l := range s.table.All() {
				s.table.Keys(l.ID)
			}
			s.feed.Take(nil)
		}
	}()
	for id := int64(1); id <= 200; id++ {
		err := s.apply(func(b *pebble.Batch) error {
			if err := s.table.Grant(b, id, 10); err != nil {
				return err
			}
			s.table.Attach(id, "k")
			if id%2 == 0 {
				_, err := s.table.Revoke(b, id)
				return err
			}
			return s.table.Checkpoint(b, id, 5)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
	if n := s.table.Len(); n != 100 {
		t.Errorf("%d leases, want 100", n)
	}
}
