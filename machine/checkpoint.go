package machine

import (
	"errors"
	"fmt"

	"github.com/coteriedb/coterie/storage/engine"
)

// State says which entries a state includes, and who was in the cluster as of
// the last of them: what raft needs to know of a snapshot.
type State struct {
	Index, Term uint64
	// Voters and Learners are empty for a state in which nothing is applied: what
	// a joiner was told of the members has not come through the log.
	Voters, Learners []uint64
}

// ReadState reads the state that an engine holds. Nothing is applied to it
// meanwhile.
func ReadState(eng *engine.Engine) (State, error) {
	index, term, err := appliedFrom(eng.Get(keyApplied, nil))
	if err != nil {
		return State{}, fmt.Errorf("machine: %w", err)
	}
	s := State{Index: index, Term: term}
	if index == 0 {
		return s, nil
	}
	members, err := readMembership(eng)
	if err != nil {
		return State{}, fmt.Errorf("machine: %w", err)
	}
	s.Voters, s.Learners = members.ids(false), members.ids(true)
	return s, nil
}

// Checkpoint makes a copy of the state in dir, which must not exist, as an
// engine of its own: durable, at little cost, and while entries are applied. It
// returns what the copy includes, which is all that was applied before the call
// and perhaps more. On an error the caller removes what is left in dir.
func (m *Machine) Checkpoint(dir string) (State, error) {
	if err := m.KV.SaveIndex(); err != nil { // for who opens the copy
		return State{}, fmt.Errorf("machine: %w", err)
	}
	if err := m.engine.Checkpoint(dir); err != nil {
		return State{}, fmt.Errorf("machine: %w", err)
	}
	copied, err := m.engine.Glance(dir)
	if err != nil {
		return State{}, fmt.Errorf("machine: read the checkpoint: %w", err)
	}
	s, err := ReadState(copied)
	return s, errors.Join(err, copied.Close())
}
