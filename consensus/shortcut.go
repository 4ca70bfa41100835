package consensus

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/coteriedb/coterie/machine"
)

// A command that comes alone to the only member of a cluster is taken all the way
// by the goroutine that proposes it. Otherwise three goroutines are woken for it
// one after the other, and with each the runtime wakes a processor to look for
// more to do; where the disk is quick that takes half as long as the disk does.
const (
	// slowWrite is how long the last write to the log may have taken: with a
	// slower disk there is little to gain.
	slowWrite = time.Millisecond
	// shortcutPatience is how long a shortcut may take before the goroutines go on
	// beside it. It is looked at when a heartbeat interval is over.
	shortcutPatience = 50 * time.Millisecond
	// rareTicks is the heartbeat interval above which there are no shortcuts: nobody
	// would look in time.
	rareTicks = 200 * time.Millisecond
	// maxShortcut is how many turns a shortcut takes. A command needs five.
	maxShortcut = 8
)

// shortcut is what is known of the one that is under way.
type shortcut struct {
	underWay  atomic.Bool
	lastWrite atomic.Int64 // how long the last write to the log took

	mu    sync.Mutex
	began time.Time // guarded by mu
	late  func()    // guarded by mu; nil without a shortcut, and once called
}

// ProposeHere is Propose for a caller that can wait as long as a quick disk takes:
// the outcome may be known when it returns. If the disk then takes long all the
// same, late is called, once, from a goroutine that must not be held up.
func (n *Node) ProposeHere(command []byte, done func(machine.Result), late func()) {
	if !n.beginShortcut(late) {
		n.Propose(command, done)
		return
	}
	n.Propose(command, done)
	n.takeShortcut()
	n.endShortcut()
}

// beginShortcut reports whether there is nothing else to do. From then on nobody
// is woken.
func (n *Node) beginShortcut(late func()) bool {
	s := &n.shortcut
	if n.cfg.Tick > rareTicks || !n.alone.Load() || n.waiting.Load() > 0 || time.Duration(s.lastWrite.Load()) > slowWrite || !s.underWay.CompareAndSwap(false, true) {
		return false
	}
	for t := range n.stations {
		n.stations[t].kept.Store(true)
	}
	for t := range n.stations {
		if n.stations[t].due.Load() {
			n.endShortcut()
			return false
		}
	}
	s.mu.Lock()
	s.began, s.late = time.Now(), late
	s.mu.Unlock()
	return true
}

// takeShortcut takes the turns of one command. It writes to the log once: what
// comes meanwhile is not what the caller waits for.
func (n *Node) takeShortcut() {
	wrote := false
	for range maxShortcut {
		due := func(t Turn) bool { return n.stations[t].due.Load() }
		var t Turn
		switch {
		case due(TurnApply):
			t = TurnApply
		case due(TurnRaft):
			t = TurnRaft
		case due(TurnLog) && !wrote:
			t, wrote = TurnLog, true
		default:
			return
		}
		if !n.tryTurn(t) {
			return
		}
	}
}

// tryTurn takes a turn unless somebody else does, who sees to the rest.
func (n *Node) tryTurn(t Turn) bool {
	s := &n.stations[t]
	if !s.mu.TryLock() {
		return false
	}
	defer s.mu.Unlock()
	return n.turnHeld(t) == nil
}

// endShortcut has the goroutines woken for what is left to do.
func (n *Node) endShortcut() {
	s := &n.shortcut
	s.mu.Lock()
	s.late = nil
	s.mu.Unlock()
	for t := range n.stations {
		n.stations[t].letGo()
	}
	s.underWay.Store(false)
}

// hurry ends the privilege of a shortcut that takes long: the goroutines are woken
// again, and its caller's own work goes on elsewhere.
func (s *shortcut) hurry(n *Node, now time.Time) {
	s.mu.Lock()
	late := s.late != nil && now.Sub(s.began) >= shortcutPatience
	s.mu.Unlock()
	if late {
		s.giveUp(n)
	}
}

// giveUp is hurry, however long it takes.
func (s *shortcut) giveUp(n *Node) {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	if late == nil {
		return
	}
	for t := range n.stations {
		n.stations[t].letGo()
	}
	late()
}
