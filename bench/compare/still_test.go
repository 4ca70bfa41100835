package main

import (
	"testing"
	"time"
)

func TestMachineStandsStillWhenAllProcessorsDo(t *testing.T) {
	at := func(ms int64) time.Time { return time.Unix(0, ms*1e6) }
	late := func(ms ...int64) (spans []span) {
		for i := 0; i < len(ms); i += 2 {
			spans = append(spans, span{ms[i] * 1e6, ms[i+1] * 1e6})
		}
		return spans
	}
	s := &stills{known: true, late: [][]span{late(1000, 1040, 3000, 3020), late(990, 1030, 3010, 3030, 5000, 5040)}}
	for _, c := range []struct {
		from, to int64
		want     bool
	}{
		{0, 849, false},
		{0, 850, true}, // a little before
		{1010, 1011, true},
		{1180, 1200, true},  // a little after
		{1181, 1200, false}, // one of them was late for longer
		{2800, 2859, false},
		{2800, 2860, true}, // only from 3010 on both are
		{3170, 9000, true},
		{3171, 9000, false}, // the second alone
	} {
		if got := s.between(at(c.from), at(c.to)); got != c.want {
			t.Errorf("between %d and %d ms: %v", c.from, c.to, got)
		}
	}
	if (&stills{}).between(at(0), at(1000)) {
		t.Error("a machine that nobody watches stood still")
	}
}
