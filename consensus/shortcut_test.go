package consensus

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/coteriedb/coterie/machine"
)

// settled waits until a member is alone and has nothing to do.
func settled(t *testing.T, n *Node) {
	t.Helper()
	eventually(t, "nothing to do", func() bool {
		for s := range n.stations {
			if n.stations[s].due.Load() {
				return false
			}
		}
		return n.alone.Load() && n.waiting.Load() == 0
	})
}

// A command that comes alone has its result when ProposeHere returns, and is told by
// its caller's goroutine. (A heartbeat that comes in between may prevent it, so it
// is tried again.)
func TestShortcut(t *testing.T) {
	m := newJournal()
	cfg := config(newLog(t, vfs.NewMem()), m)
	cfg.Tick = rareTicks
	n := start(t, cfg)
	defer n.Close()
	here := 0
	const tries = 50
	for i := range tries {
		settled(t, n)
		answer := make(chan machine.Result, 1)
		n.ProposeHere(fmt.Appendf(nil, "%d", i), func(r machine.Result) { answer <- r }, func() { t.Error("memory is late") })
		if len(answer) > 0 {
			here++
		}
		if got, want := text(<-answer), fmt.Sprintf("%d:%d", i+1, i); got != want {
			t.Fatalf("the result is %q, want %q", got, want)
		}
	}
	if here == 0 { // where writes take long, because the machine has more to do, not all have
		t.Errorf("none of %d commands had its result at once", tries)
	}
	if got := m.list(); len(got) != tries {
		t.Errorf("applied %v", got)
	}
}

// Shortcuts, proposals and reads side by side: everyone gets his own result, once.
func TestShortcutsBesideOthers(t *testing.T) {
	m := newJournal()
	n := start(t, config(newLog(t, vfs.NewMem()), m))
	settled(t, n)
	const callers, each = 6, 300
	var group sync.WaitGroup
	var answers atomic.Int64
	for c := range callers {
		group.Go(func() {
			for i := range each {
				command := fmt.Sprintf("%d/%d", c, i)
				answer := make(chan machine.Result, 1)
				done := func(r machine.Result) { answers.Add(1); answer <- r }
				if c%3 == 0 {
					n.Propose([]byte(command), done)
				} else {
					n.ProposeHere([]byte(command), done, func() {})
				}
				var number int
				var rest string
				if _, err := fmt.Sscanf(text(<-answer), "%d:%s", &number, &rest); err != nil || rest != command {
					t.Errorf("%s got the result %d:%s, %v", command, number, rest, err)
				}
			}
		})
	}
	group.Wait()
	must(t, readIndex(n))
	n.Close()
	if got := len(m.list()); got != callers*each || answers.Load() != callers*each {
		t.Errorf("%d commands, %d applied, %d answers", callers*each, got, answers.Load())
	}
}

// hangingDisk returns a disk whose syncs hang once hangs is set, until answer is called.
func hangingDisk() (fs vfs.FS, hangs *atomic.Bool, answer func()) {
	hangs = new(atomic.Bool)
	answers := make(chan struct{})
	fs = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && hangs.Load() {
			<-answers
		}
		return nil
	}))
	return fs, hangs, func() { hangs.Store(false); close(answers) }
}

// lateOrOver waits until the caller of a shortcut has been told that it takes long. (A heartbeat
// may have come in between, and then the shortcut is over and the goroutines wait for the disk.)
func lateOrOver(t *testing.T, n *Node, calls *atomic.Int64) {
	t.Helper()
	eventually(t, "the caller is told", func() bool { return calls.Load() > 0 || !n.shortcut.underWay.Load() })
}

// With a disk that hangs, the caller of a shortcut is told that it takes long, and
// the member's other work goes on: another proposal runs out of time.
func TestShortcutWithAHungDisk(t *testing.T) {
	fs, hangs, answer := hangingDisk()
	cfg := config(newLog(t, fs), newJournal())
	cfg.RequestTimeout = 200 * time.Millisecond
	n := start(t, cfg)
	defer n.Close()
	settled(t, n)
	hangs.Store(true)
	var calls atomic.Int64
	first := make(chan machine.Result, 1)
	go n.ProposeHere([]byte("first"), func(r machine.Result) { first <- r }, func() { calls.Add(1) }) // ends when the disk answers
	eventually(t, "the disk hangs", func() bool { return n.waiting.Load() > 0 })
	lateOrOver(t, n, &calls)
	if r := propose(n, "second"); r.Err != ErrTimeout { //nolint:errorlint // it is this one
		t.Errorf("the second proposal: %v", r)
	}
	answer()
	if r := <-first; r.Err != nil && r.Err != ErrTimeout { //nolint:errorlint // it is one of these
		t.Errorf("the first proposal: %v", r)
	}
	eventually(t, "the end of the shortcut", func() bool { return !n.shortcut.underWay.Load() })
	if calls.Load() > 1 {
		t.Errorf("late was called %d times", calls.Load())
	}
	if r := propose(n, "third"); r.Err != nil {
		t.Errorf("after the disk has answered: %v", r.Err)
	}
}

// A member that fails during a shortcut that hangs says so to its caller at once.
func TestShortcutOfAMemberThatFails(t *testing.T) {
	fs, hangs, answer := hangingDisk()
	n := start(t, config(newLog(t, fs), newJournal()))
	defer n.Close()
	settled(t, n)
	hangs.Store(true)
	var calls atomic.Int64
	first := make(chan machine.Result, 1)
	go n.ProposeHere([]byte("x"), func(r machine.Result) { first <- r }, func() { calls.Add(1) }) // ends when the disk answers
	eventually(t, "the disk hangs", func() bool { return n.waiting.Load() > 0 })
	n.Fail(errors.New("for another reason"))
	lateOrOver(t, n, &calls)
	answer()
	if r := <-first; r.Err == nil {
		t.Error("a member that has failed acknowledges")
	}
}

// A member that stops during a shortcut answers it, and waits for it.
func TestShortcutThatIsStopped(t *testing.T) {
	for range 50 {
		n := start(t, config(newLog(t, vfs.NewMem()), newJournal()))
		settled(t, n)
		var group sync.WaitGroup
		var asked, answered atomic.Int64
		for range 3 {
			group.Go(func() {
				for stopped := false; !stopped; {
					answer := make(chan machine.Result, 1)
					asked.Add(1)
					n.ProposeHere([]byte("x"), func(r machine.Result) { answered.Add(1); answer <- r }, func() {})
					r := <-answer
					stopped = r.Err != nil
				}
			})
		}
		eventually(t, "some commands", func() bool { return answered.Load() > 20 })
		n.Close()
		group.Wait()
		if asked.Load() != answered.Load() {
			t.Fatalf("%d were asked, %d answered", asked.Load(), answered.Load())
		}
	}
}
