package machine

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// However Apply is given the entries, their results and the state are the same;
// and no engine batch takes more entries once it is full.
func TestBatchesAreDividedBetweenEntries(t *testing.T) {
	var entries []Entry
	for i := range uint64(30) {
		e := Entry{Index: i + 2, Term: 2}
		for j := range 3 {
			e.Commands = append(e.Commands, command(t, put(fmt.Sprint("key", i, j), strings.Repeat("v", 100), 0)))
		}
		entries = append(entries, e)
	}
	whole, divided := newHarness(t), newHarness(t)
	defer whole.close()
	defer divided.close()
	divided.batchBytes = 700 // one entry is less, two are more
	commits := 0
	divided.onCommit = func(time.Duration) { commits++ }
	a, err := whole.Apply(entries)
	must(t, err)
	b, err := divided.Apply(entries)
	must(t, err)
	if commits != 15 {
		t.Errorf("30 entries made %d batches", commits)
	}
	if fmt.Sprint(a) != fmt.Sprint(b) || len(a) != 90 {
		t.Errorf("%d and %d results, which differ", len(a), len(b))
	}
	if got, want := divided.state(), whole.state(); got != want {
		t.Errorf("divided\n%s\nwhole\n%s", got, want)
	}
}

// The commands that an entry has no room for are the same ones wherever and with
// whatever before it the entry is applied.
func TestEntriesThatWriteTooMuch(t *testing.T) {
	keep := &pb.InternalRaftRequest{Put: &pb.PutRequest{Key: []byte("large"), IgnoreValue: true}}
	entries := []Entry{
		{Index: 2, Term: 2, Commands: [][]byte{command(t, put("large", strings.Repeat("v", 1000), 0))}},
		{Index: 3, Term: 2},
		{Index: 4, Term: 2, Commands: [][]byte{command(t, put("small", "", 0))}},
	}
	for range 20 {
		entries[1].Commands = append(entries[1].Commands, command(t, keep))
	}
	var states []string
	for name, divide := range map[string][]int{"at once": {3}, "one by one": {1, 1, 1}, "two and one": {2, 1}} {
		h := newHarness(t)
		h.entryBytes = 4500
		var results []Result
		rest := entries
		for _, n := range divide {
			rs, err := h.Apply(rest[:n])
			must(t, err)
			results, rest = append(results, rs...), rest[n:]
		}
		if len(results) != 22 {
			t.Fatalf("%s: %d results", name, len(results))
		}
		for i, r := range results {
			if full := errors.Is(r.Err, ErrEntryFull); full != (i > 5 && i < 21) {
				t.Errorf("%s: result %d: %v", name, i, r.Err)
			}
		}
		states = append(states, h.state())
		h.close()
	}
	if states[0] != states[1] || states[1] != states[2] {
		t.Errorf("the states differ:\n%s", strings.Join(states, "\n"))
	}
}
