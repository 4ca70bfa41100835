package h2

import (
	"math/rand/v2"
	"testing"
)

// A table is a map, whatever lives long in it.
func TestTable(t *testing.T) {
	var table table
	model := map[uint32]*Stream{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for id := uint32(1); id < 60_000; id += 2 {
		s := &Stream{request: request{id: id}}
		table.put(s)
		model[id] = s
		for len(model) > int(id/100) && len(model) > 0 {
			victim := 1 + 2*rnd.Uint32N(id/2+1)
			if got := table.get(victim); got != model[victim] {
				t.Fatalf("stream %d is %p, want %p", victim, got, model[victim])
			}
			if s := model[victim]; s != nil {
				table.remove(s)
				delete(model, victim)
			}
		}
	}
	seen := 0
	table.each(func(s *Stream) {
		seen++
		if model[s.id] != s || table.get(s.id) != s {
			t.Errorf("stream %d is not the one that was put", s.id)
		}
	})
	if seen != len(model) || table.n != len(model) {
		t.Errorf("%d streams, and says %d; want %d", seen, table.n, len(model))
	}
}
