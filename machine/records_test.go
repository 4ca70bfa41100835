package machine

import (
	"bytes"
	"slices"
	"testing"
)

// FuzzRecords opens a machine whose own records in the engine (the applied index, the members, the alarms) are whatever comes.
// What it opens with, it tells in order and without duplicates; and it says the same of its state as who only looks at it.
func FuzzRecords(f *testing.F) {
	member := []byte(`[{"id":5,"peerURLs":["http://a"]},{"id":6,"peerURLs":["http://b"],"isLearner":true}]`)
	applied := make([]byte, 16)
	applied[7], applied[15] = 9, 2
	f.Add(applied, member, []byte(`[3,4]`), []byte("\x01\x00\x00\x00\x00\x00\x00\x00\x05"))
	f.Add(applied[:8], []byte(`null`), []byte(`[-1]`), []byte("\x09"))
	f.Add([]byte{}, []byte(`[{"id":18446744073709551615}]`), []byte(``), []byte("\x02\xff\xff\xff\xff\xff\xff\xff\xff"))
	h := newHarness(f)
	f.Cleanup(func() { must(f, h.engine.Close()) })
	h.Close()
	f.Fuzz(func(t *testing.T, applied, members, removed, alarm []byte) {
		b := h.engine.NewBatch()
		must(t, b.DeleteRange([]byte{alarmPrefix}, []byte{alarmPrefix + 1}, nil))
		must(t, b.Set(keyApplied, bytes.Clone(applied), nil))
		must(t, b.Set(keyMembers, bytes.Clone(members), nil))
		must(t, b.Set(keyRemoved, bytes.Clone(removed), nil))
		must(t, b.Set(append([]byte{alarmPrefix}, alarm...), nil, nil))
		must(t, h.engine.Commit(b))
		must(t, b.Close())
		state, stateErr := ReadState(h.engine)
		m, err := Open(Options{Engine: h.engine})
		if err != nil {
			return
		}
		defer m.Close()
		if stateErr != nil {
			t.Fatalf("the machine opens, and its state cannot be read: %v", stateErr)
		}
		if m.Applied() != state.Index || state.Index > 0 && (!slices.Equal(state.Voters, m.Members.Voters()) || !slices.Equal(state.Learners, m.Members.Learners())) {
			t.Errorf("the state is %+v; the machine has %d, %v, %v", state, m.Applied(), m.Members.Voters(), m.Members.Learners())
		}
		for _, member := range m.Members.List() {
			if got, ok := m.Members.Get(member.ID); !ok || got.ID != member.ID {
				t.Errorf("member %x is listed and not found", member.ID)
			}
		}
		if len(m.Alarms.List(0)) != 1 {
			t.Errorf("the alarms are %v", m.Alarms.List(0))
		}
	})
}
