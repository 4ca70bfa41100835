package coterie

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/coteriedb/coterie/guard"
)

// FuzzHashCall answers calls of other members for a hash. An answer is one that they can read, of a revision that there is.
func FuzzHashCall(f *testing.F) {
	n := openNode(f, testConfig(f))
	f.Cleanup(func() { must(f, n.Close()) })
	in, err := json.Marshal(hashRequest{1})
	must(f, err)
	f.Add(in)
	f.Add([]byte(`{"revision":-9223372036854775808}`))
	f.Add([]byte(`{"revision":9223372036854775807}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := hashes{n}.serve(t.Context(), in)
		if err != nil {
			return
		}
		var r hashRequest
		var h guard.Hash
		must(t, json.Unmarshal(in, &r))
		must(t, json.Unmarshal(out, &h))
		if h.HashRevision > h.Revision || r.Revision > 0 && h.HashRevision != r.Revision {
			t.Errorf("the answer to %s is %+v", in, h)
		}
	})
}

// hang makes a member that lives, as far as the others can see, and never answers for its hash: its process is
// stopped, or its disk hangs under the read.
func hang(n *Node) {
	n.peers.Handle(callHash, func(ctx context.Context, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
}

// Five members: three agree, which is a majority, one is corrupt, one hangs.
// What the others say is complete at once, and thrown away: the look's whole time is spent on the one that hangs, and
// nothing is left for catching up.
func TestGuardBesideAHungMember(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, hung := range []bool{false, true} {
		configs := testCluster(t, 5)
		nodes := openAll(t, configs)
		ctx := t.Context()
		_, err := nodes[0].Client().Put(ctx, "k", "v")
		must(t, err)
		wantSame(t, nodes)
		l := leaderOf(t, nodes)
		rest := others(nodes, l)
		bad := rest[0]
		i := slices.Index(nodes, bad)
		must(t, bad.Close())
		corrupt(t, configs[i])
		nodes[i] = openNode(t, configs[i])
		if hung {
			hang(rest[1])
		}
		l = leaderOf(t, nodes)
		g := guard.New(hashes{l}, guard.Options{ID: l.data.MemberID, Interval: 50 * time.Millisecond,
			Pause: 10 * time.Millisecond, Timeout: time.Second}) // the default is ten minutes
		g.SetActive(true)
		run, cancel := context.WithTimeout(ctx, 15*time.Second)
		done := make(chan struct{})
		go func() { g.Run(run); close(done) }()
		found := false
		for run.Err() == nil && !found {
			alarms := l.machine().Alarms.List(0)
			found = len(alarms) == 1 && alarms[0].MemberID == bad.data.MemberID
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
		<-done
		if !found {
			t.Errorf("one of five is corrupt, three agree, one hangs (%v): no alarm in 15 looks", hung)
		}
		closeAll(t, nodes)
	}
}

// A member that checks its data at the start is held up by one that hangs, for ten minutes.
func TestInitialCheckBesideAHungMember(t *testing.T) {
	t.Parallel() // it mostly waits
	configs := testCluster(t, 3)
	nodes := openAll(t, configs)
	l := leaderOf(t, nodes)
	again := slices.Index(nodes, others(nodes, l)[0])
	hang(others(nodes, l)[1])
	must(t, nodes[again].Close())
	configs[again].InitialCorruptCheck = true
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout(&configs[0])+10*time.Second)
	defer cancel()
	began := time.Now()
	n, err := Open(ctx, configs[again])
	if err != nil {
		nodes = slices.Delete(nodes, again, again+1)
	} else {
		nodes[again] = n
	}
	// It goes on when the context ends that the test gives Open; without one that is guard.DefaultTimeout.
	if took := time.Since(began); took > requestTimeout(&configs[0])+5*time.Second {
		t.Errorf("not serving for %v, the whole of the context: %v", took, err)
	}
	closeAll(t, nodes)
}
