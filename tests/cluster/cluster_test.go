package cluster

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coteriedb/coterie/tests/network"
	"github.com/coteriedb/coterie/tests/target"
	"github.com/coteriedb/coterie/tests/witness"
)

var (
	kind     = flag.String("cluster.kind", string(target.KindCoterie), "whose binary the members run: coterie or etcd")
	binary   = flag.String("cluster.binary", "", "the members' binary; built from source when empty")
	seed     = flag.Uint64("cluster.seed", 1, "seed of the first round: of its faults, its network and its requests")
	rounds   = flag.Int("cluster.rounds", 2, "how many rounds of faults, each with the next seed")
	duration = flag.Duration("cluster.duration", 20*time.Second, "about how long a round takes")
	keep     = flag.Bool("cluster.keep", false, "keep the members' data and logs also when the test passes")
	size     = flag.Int("cluster.size", 0, "members of a cluster; 0 is 3 in rounds with an odd seed, and 5 in the others")
)

// election is the members' election timeout: short, so that many faults fit into a round.
const election = 500 * time.Millisecond

// serviceLimit is how long writes may fail while a minority is in trouble: two election timeouts, and what the machine may
// take that runs it all.
const serviceLimit = 2*election + 500*time.Millisecond

var flags = []string{
	"--heartbeat-interval", "50", "--election-timeout", "500",
	"--watch-progress-notify-interval", "200ms",
	// Who was away for a second or two is then sent a snapshot.
	"--snapshot-count", "100", "--snapshot-catchup-entries", "50",
}

// built is the binary of this run.
var built = sync.OnceValues(func() (string, error) {
	if *binary != "" {
		return filepath.Abs(*binary)
	}
	dir, err := os.MkdirTemp("", "cluster-bin-")
	if err != nil {
		return "", err
	}
	return target.BuildBinary(context.Background(), target.Kind(*kind), dir)
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if path, err := built(); err == nil && *binary == "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func binaryPath(t *testing.T) string {
	t.Helper()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// openNetwork makes a network, or skips the test where none can be made and nobody insists.
func openNetwork(t *testing.T, size int, seed uint64) *network.Network {
	t.Helper()
	if err := network.Available(); err != nil {
		if os.Getenv("COTERIE_TEST_NETWORK") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v (set COTERIE_TEST_NETWORK to make this a failure)", err)
	}
	n, err := network.Open(size, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// startCluster starts a cluster and closes it with the test. Its directory stays when the test fails.
func startCluster(ctx context.Context, t *testing.T, size int, n *network.Network, extra ...string) *target.Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "cluster-")
	if err != nil {
		t.Fatal(err)
	}
	cfg := target.ClusterConfig{
		Binary: binaryPath(t), Kind: target.Kind(*kind), Dir: dir, Size: size, Flags: slices.Concat(flags, extra),
	}
	if n != nil {
		for i := range n.Size() {
			cfg.Hosts = append(cfg.Hosts, target.Host{Addr: n.Addr(i), Command: n.Command(i)})
		}
	}
	c, err := target.StartCluster(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() || *keep {
			t.Logf("the members' data and logs are in %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	return c
}

// TestFaults hurts clusters in as many ways as a round has time for, and checks what the clients noted.
func TestFaults(t *testing.T) {
	for round := range *rounds {
		seed := *seed + uint64(round)
		members := *size
		if members == 0 {
			members = 5 - 2*int(seed%2)
		}
		t.Run(fmt.Sprintf("seed %d, %d members", seed, members), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("replay: go -C tests test ./cluster -count 1 -timeout 0 -run '^TestFaults$' -args -cluster.kind=%s -cluster.seed=%d -cluster.size=%d -cluster.duration=%v -cluster.rounds=1",
						*kind, seed, members, *duration)
				}
			}()
			faultRound(t, seed, members)
		})
	}
}

// span is the time of one fault and of the peace after it.
type span struct {
	fault    Fault
	who      string
	from, to time.Duration
}

func faultRound(t *testing.T, seed uint64, members int) {
	ctx, cancel := context.WithTimeout(t.Context(), 3**duration+2*time.Minute)
	defer cancel()
	plan := Plan(seed, members, *duration)
	n := openNetwork(t, members, seed)
	c := startCluster(ctx, t, members, n)
	traffic, err := witness.StartTraffic(ctx, c, witness.TrafficConfig{
		Seed: seed, Keys: 8, Pace: time.Duration(members) * 8 * time.Millisecond, Timeout: election, Value: 200,
		Compact: int64(seed % 4 / 2 * 300), // in every other pair of rounds
		Apart:   target.Kind(*kind) == target.KindEtcd,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer traffic.Close()
	var spans []span
	for _, f := range plan {
		if err := last(ctx, f.After); err != nil {
			t.Fatal(err)
		}
		from := traffic.Mark()
		who, err := inject(ctx, c, n, f)
		if err != nil {
			giveUp(t, traffic, fmt.Errorf("%w\nthe plan:\n%s", err, Script(plan)))
		}
		spans = append(spans, span{f, who, from, traffic.Mark()})
	}
	judge(ctx, t, c, traffic)
	checkService(t, traffic.Notes(), spans)
	if t.Failed() {
		t.Logf("the plan:\n%s", Script(plan))
	}
}

// inject does one fault. It fails also when a member has ended that nobody ended.
func inject(ctx context.Context, c *target.Cluster, n *network.Network, f Fault) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	who, err := Inject(ctx, c, n, f)
	return who, errors.Join(err, c.Failed())
}

// judge ends the traffic and checks all that was noted against all that the members hold.
func judge(ctx context.Context, t *testing.T, c *target.Cluster, traffic *witness.Traffic) {
	t.Helper()
	histories, err := witness.Confront(ctx, c, traffic)
	if err != nil {
		t.Error(witness.Shorten(err))
	}
	notes := traffic.Notes()
	acknowledged := notes.Acknowledged()
	t.Logf("%d requests noted, %d writes among them acknowledged, %d watches", len(notes.Ops), acknowledged, len(notes.Watches))
	if acknowledged < 100 {
		t.Errorf("only %d writes were acknowledged: the traffic is too light to prove anything", acknowledged)
	}
	if t.Failed() {
		dump(t, notes, histories)
	}
}

// giveUp ends a test whose cluster does not go on, and keeps what was noted until then.
func giveUp(t *testing.T, traffic *witness.Traffic, err error) {
	t.Helper()
	t.Error(err)
	if err := traffic.Close(); err != nil {
		t.Error(err)
	}
	dump(t, traffic.Notes(), nil)
	t.FailNow()
}

// dump keeps all notes and histories in a file.
func dump(t *testing.T, notes *witness.Notes, histories map[int][]witness.Event) {
	file, err := os.CreateTemp("", "cluster-notes-*.jsonl")
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	if err := notes.Write(file, histories); err != nil {
		t.Error(err)
	}
	t.Logf("all notes are in %s", file.Name())
}

// checkService measures how long no write succeeded in each span, and holds it to the limit.
func checkService(t *testing.T, notes *witness.Notes, spans []span) {
	for _, s := range spans {
		gap := longestSilence(notes, s.from, s.to)
		t.Logf("%5.1f s: %s (%s): %d ms without a write", s.from.Seconds(), s.fault.Name, s.who, gap.Milliseconds())
		if gap > serviceLimit && s.fault.Name != killAll && target.Kind(*kind) == target.KindCoterie {
			t.Errorf("%s: no write succeeded for %v, the limit is %v", s.fault.Name, gap, serviceLimit)
		}
	}
}

// longestSilence is the longest time without an acknowledged write.
func longestSilence(notes *witness.Notes, from, to time.Duration) time.Duration {
	var times []time.Duration
	for i := range notes.Ops {
		if o := &notes.Ops[i]; o.Changed() && o.Return >= from && o.Return <= to {
			times = append(times, o.Return)
		}
	}
	times = append(times, from, to)
	slices.Sort(times)
	longest := time.Duration(0)
	for i := 1; i < len(times); i++ {
		longest = max(longest, times[i]-times[i-1])
	}
	return longest
}
