package consensus

import (
	"fmt"
	"strings"
	"testing"
)

// slowInstall is a machine that takes long to install a snapshot.
type slowInstall struct {
	*journal
	began, leave chan struct{}
}

func (s slowInstall) Install(index, term uint64) error {
	err := s.journal.Install(index, term)
	s.began <- struct{}{}
	<-s.leave
	return err
}

// While a member installs the snapshot that it was sent, the leader keeps what the
// member will ask for next: it needs no second one.
func TestLogIsKeptWhileASnapshotIsInstalled(t *testing.T) {
	began, leave := make(chan struct{}, 10), make(chan struct{})
	c := newCluster(t, func(cfg *Config) {
		cfg.ElectionTicks = 200 // the leader stays
		cfg.Machine = slowInstall{cfg.Machine.(*journal), began, leave}
	}, 1, 2, 3)
	l := c.leader()
	f := c.follower()
	write := func(n int) {
		for i := range n {
			if r := propose(l.node, fmt.Sprint(i, strings.Repeat("x", 1000))); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
	first := func() uint64 { i, _ := l.log.FirstIndex(); return i }
	last, _ := f.log.LastIndex()
	c.isolate(f.id, true)
	write(100)
	eventually(t, "the log to be cut", func() bool { write(1); return first() > last+1 })
	c.isolate(f.id, false)
	<-began
	eventually(t, "the leader to hear that the snapshot was sent", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.moved == 1 })
	sent, _ := f.log.LastIndex() // of the snapshot
	write(100)
	if first() > sent+1 {
		t.Errorf("the member that installs the snapshot of entry %d needs the entries behind it; the log begins with %d, need is %+v", sent, first(), *l.node.needed.Load())
	}
	close(leave)
	c.wantEqual()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.moved > 1 {
		t.Errorf("%d snapshots were sent, one would do", c.moved)
	}
}
