package consensus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Turn is one of the things that a member does again and again. Each is done by
// one goroutine at a time, and different ones go on side by side.
type Turn int

// The turns.
const (
	TurnRaft  Turn = iota // feeds the core, and hands on what it wants
	TurnLog               // appends to the log
	TurnApply             // applies to the machine
	TurnTrim              // cuts the log, removes its files and makes new ones
	Turns                 // how many there are
)

// station is where turns of a kind are taken: all but those of TurnTrim.
type station struct {
	mu   sync.Mutex    // held by who takes a turn; for good once the member has stopped
	wake chan struct{} // of the goroutine that takes the turns; capacity 1
	due  atomic.Bool   // there may be something to do
	// kept is set while a shortcut is under way, which looks at due when it is over:
	// nobody need be woken until then.
	kept atomic.Bool
}

// ring says that there is something to do.
func (s *station) ring() {
	s.due.Store(true)
	if !s.kept.Load() {
		s.rouse()
	}
}

func (s *station) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// letGo ends kept. Either it sees what was rung for before, or ring sees it.
func (s *station) letGo() {
	s.kept.Store(false)
	if s.due.Load() {
		s.rouse()
	}
}

// raftLoop owns the core.
func (n *Node) raftLoop() error {
	ticker := time.NewTicker(n.cfg.Tick)
	defer ticker.Stop()
	defer n.stopRaft()
	defer n.shortcut.giveUp(n)           // nobody would look after it any more
	defer n.stations[TurnRaft].mu.Lock() // no shortcut takes a turn any more
	for {
		select {
		case <-n.stop:
			return nil
		case at := <-ticker.C:
			n.tick(at)
			n.shortcut.hurry(n, at)
		case <-n.stations[TurnRaft].wake:
		}
		if err := n.takeTurn(TurnRaft); err != nil {
			return err
		}
	}
}

func (n *Node) logLoop() error { return n.loop(TurnLog) }

func (n *Node) applyLoop() error {
	defer func() { // the log may hang, and finish wait for it
		n.over.Lock()
		defer n.over.Unlock()
		n.applyOver = true
		n.stopApplying()
	}()
	return n.loop(TurnApply)
}

// loop takes a turn each time that it is woken.
func (n *Node) loop(t Turn) error {
	s := &n.stations[t]
	defer s.mu.Lock() // no shortcut takes a turn any more
	for {
		select {
		case <-n.stop:
			return nil
		case <-s.wake:
		}
		if err := n.takeTurn(t); err != nil {
			return err
		}
	}
}

// takeTurn takes a turn when nobody else does.
func (n *Node) takeTurn(t Turn) error {
	n.stations[t].mu.Lock()
	defer n.stations[t].mu.Unlock()
	return n.turnHeld(t)
}

// turnHeld takes a turn with its station's mu held. After a failure nobody does.
func (n *Node) turnHeld(t Turn) error {
	if err := n.Err(); err != nil {
		return err
	}
	n.stations[t].due.Store(false)
	err := n.turn(t)
	if err != nil {
		n.fail(err)
	}
	return err
}

func (n *Node) turn(t Turn) error {
	switch t {
	case TurnRaft:
		return n.storage.guard(n.raftTurn)
	case TurnLog:
		return n.logTurn()
	case TurnApply:
		return n.applyTurn()
	case TurnTrim:
		return n.trimTurn()
	}
	panic(fmt.Sprintf("consensus: there is no turn %d", t))
}

// tick has the next turn of the core know that a heartbeat interval has passed. If
// none has been taken since the last one, time has stood still for the core.
func (n *Node) tick(at time.Time) {
	select {
	case n.beats <- at:
	default:
	}
}

// stopRaft answers whom the core still holds, and who comes later.
func (n *Node) stopRaft() {
	for _, f := range n.core.failAll(ErrStopped) {
		f()
	}
	n.inbound.close() // nobody makes room any more
	close(n.deaf)
	n.settleMail() // what came before; later callers settle themselves
	n.over.Lock()
	defer n.over.Unlock()
	if n.applyOver { // else it answers what has come to be applied
		n.stopApplying()
	}
}

// raftTurn feeds the core with all that has come, and hands on what it wants.
func (n *Node) raftTurn() error {
	select {
	case at := <-n.beats:
		n.core.tick(at)
		n.expireHanded(at)
		n.noteNeed()
	default:
	}
	n.input()
	ps := n.proposals.take()
	n.core.proposals = append(n.core.proposals, ps...)
	n.proposals.recycle(ps)
	rs := n.reads.take()
	n.core.readers = append(n.core.readers, rs...)
	n.reads.recycle(rs)
	n.core.propose()
	n.core.requestRead(time.Now())
	for n.core.hasReady() {
		n.perform(n.core.ready())
		// An election or a confirmed round may have let more go on.
		n.core.propose()
		n.core.requestRead(time.Now())
	}
	if !n.alone.Load() && n.core.alone() && n.core.commitIsKnown() {
		n.alone.Store(n.applied.Load() >= n.core.raft.BasicStatus().GetCommit())
	}
	return nil
}

// The following is for a simulation, which takes the turns of a member that New
// has made by itself: one of a kind at a time, different ones side by side if it
// likes.

// Due reports whether a turn has something to do.
func (n *Node) Due(t Turn) bool {
	if t != TurnTrim {
		return n.stations[t].due.Load()
	}
	return n.purging || len(n.cfg.Log.ToPrepare())+len(n.cfg.Log.ToPurge())+len(n.cfg.Machine.Flushed()) > 0
}

// Take takes a turn. After an error the member has stopped, but for End.
func (n *Node) Take(t Turn) error {
	if n.Err() != nil {
		return n.Err()
	}
	if t != TurnTrim {
		n.stations[t].due.Store(false)
	}
	err := n.turn(t)
	if err != nil {
		n.fail(err)
	}
	return err
}

// Tick says that a heartbeat interval has passed.
func (n *Node) Tick(at time.Time) {
	n.tick(at)
	n.stations[TurnRaft].ring()
}

// End closes a member that takes no turns by itself.
func (n *Node) End() {
	n.stopOnce.Do(func() { close(n.stop) })
	n.stopRaft()
	n.finish()
}
