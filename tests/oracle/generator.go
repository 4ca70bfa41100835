package oracle

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/coteriedb/coterie/tests/target"
)

// generator makes the values of a sequence. Everything random comes from its one source; what it knows of the
// servers' state it is told by the runner, from the reference's answers.
type generator struct {
	*rand.Rand
	keys      int // number of ordinary keys
	maxTxnOps int

	// The state of both servers as far as values are chosen by it.
	rev         int64          // current revision
	compacted   int64          // last compacted revision
	compactions map[int64]bool // all of them since the servers' start
	refilled    map[int64]bool // revisions that may have deleted a key and put it again
	leases      map[int64]int64
	nextLease   int64
}

func newGenerator(seed uint64) *generator {
	g := &generator{
		Rand:        rand.New(rand.NewPCG(seed, 0x636f7465726965)),
		rev:         1,
		compacted:   -1,
		compactions: map[int64]bool{},
		refilled:    map[int64]bool{},
		leases:      map[int64]int64{},
	}
	g.keys = pick(g, []int{6, 40, 40, 300, 2500})
	return g
}

// serverConfig chooses limits that sequences run into.
func (g *generator) serverConfig() target.Config {
	g.maxTxnOps = pick(g, []int{8, 24, 128})
	return target.Config{
		UnsafeNoFsync:   true,
		MaxTxnOps:       uint(g.maxTxnOps),
		MaxRequestBytes: maxRequestBytes,
	}
}

// maxRequestBytes is low, so that requests beyond it and watch responses that must be fragmented stay cheap.
const maxRequestBytes = 16 << 10

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// chance is true in about n of 1000 calls.
func (g *generator) chance(n int) bool { return g.IntN(1000) < n }

// edgeKeys are keys at the borders of what the encodings of either server could get wrong.
var edgeKeys = [][]byte{
	{0}, {0, 0}, {0, 1}, {0, 0xff}, {1}, {0xff}, {0xff, 0xff}, {0xff, 0}, {0xff, 0xff, 0xff, 0xff},
	[]byte("k"), []byte("k\x00"), []byte("k\x00\x00"), []byte("k\x00\x01"), []byte("k\x00\xff"), []byte("k\xff"), []byte("k\xff\xff"),
	[]byte("k0"), []byte("k/"), []byte("k/\x00"), []byte("k/\xff"), []byte("l"), []byte("\xc3\x28"), []byte("ключ"),
	bytes.Repeat([]byte{'x'}, 1000), bytes.Repeat([]byte{0}, 300), bytes.Repeat([]byte{0xff}, 300),
	append(bytes.Repeat([]byte{'x'}, 4000), 'y'),
}

// key gives an ordinary key most of the time.
func (g *generator) key() []byte {
	switch {
	case g.chance(8):
		return nil
	case g.chance(70):
		return pick(g, edgeKeys)
	case g.chance(10):
		k := make([]byte, 1+g.IntN(5))
		for i := range k {
			k[i] = pick(g, []byte{0, 1, 'a', 'k', 0xfe, 0xff})
		}
		return k
	}
	return g.ordinaryKey()
}

func (g *generator) ordinaryKey() []byte {
	n := g.IntN(g.keys)
	if n%3 == 0 {
		return fmt.Appendf(nil, "k/%d/%03d", n%4, n)
	}
	return fmt.Appendf(nil, "k%04d", n)
}

// rangeEnd gives an end for a range that begins at key; most are those that users have.
func (g *generator) rangeEnd(key []byte) []byte {
	switch n := g.IntN(100); {
	case n < 45:
		return nil
	case n < 60:
		return prefixEnd(key)
	case n < 68:
		return prefixEnd([]byte("k"))
	case n < 78:
		return []byte{0}
	case n < 92:
		return g.key() // inverted about half of the time
	case n < 95:
		return key
	case n < 98:
		return append(bytes.Clone(key), 0)
	}
	return pick(g, edgeKeys)
}

// prefixEnd is the end of the range of all keys with a prefix.
func prefixEnd(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

func (g *generator) value() []byte {
	switch n := g.IntN(100); {
	case n < 8:
		return nil
	case n < 16:
		return []byte{0}
	case n < 70:
		return fmt.Appendf(nil, "v%d", g.IntN(20)) // few values, so that sorting by value has ties
	case n < 98:
		v := make([]byte, g.IntN(200))
		for i := range v {
			v[i] = byte(g.IntN(256))
		}
		return v
	}
	return bytes.Repeat([]byte{byte(g.IntN(256))}, g.IntN(4<<10))
}

// revision gives a revision for reading; zero, for now, in about half of the calls.
func (g *generator) revision() int64 {
	switch n := g.IntN(100); {
	case n < 50:
		return 0
	case n < 70:
		return max(1, g.rev-g.Int64N(50))
	case n < 84:
		return max(g.compacted, 1) + g.Int64N(max(1, g.rev-max(g.compacted, 1)+1))
	case n < 87:
		return g.compacted
	case n < 90:
		return g.compacted - 1
	case n < 92:
		return g.compacted + 1
	case n < 95:
		return g.rev
	case n < 97:
		return g.rev + 1
	}
	return pick(g, []int64{1, 2, -1, -2, math.MinInt64, math.MaxInt64, g.rev + 1000})
}

// bound gives a revision for a filter; zero, for none, most of the time.
func (g *generator) bound() int64 {
	switch n := g.IntN(100); {
	case n < 85:
		return 0
	case n < 98:
		return 1 + g.Int64N(g.rev)
	}
	return pick(g, []int64{-1, math.MinInt64, math.MaxInt64, g.rev + 1})
}

func (g *generator) limit() int64 {
	switch n := g.IntN(100); {
	case n < 60:
		return 0
	case n < 85:
		return 1 + g.Int64N(8)
	case n < 95:
		return 1 + g.Int64N(int64(2*g.keys))
	}
	return pick(g, []int64{-1, math.MinInt64, math.MaxInt64, math.MaxInt64 - 1, 1 << 40})
}

// leaseForPut gives mostly no lease, else one that exists, rarely one that does not.
func (g *generator) leaseForPut() int64 {
	switch n := g.IntN(100); {
	case n < 75 || len(g.leases) == 0 && n < 97:
		return 0
	case n < 97:
		return g.someLease()
	}
	return g.unknownLease()
}

// someLease gives the id of a lease that exists, if there is one.
func (g *generator) someLease() int64 {
	if len(g.leases) == 0 {
		return g.unknownLease()
	}
	ids := make([]int64, 0, len(g.leases))
	for id := range g.leases {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return pick(g, ids)
}

func (g *generator) unknownLease() int64 {
	return pick(g, []int64{987654321, -987654321, math.MaxInt64 - 5, math.MinInt64})
}

// newLease gives an id that has not been used.
func (g *generator) newLease() int64 {
	g.nextLease++
	switch g.IntN(10) {
	case 0:
		return -g.nextLease
	case 1:
		return math.MaxInt64 - 1000 - g.nextLease
	}
	return 1000 + g.nextLease
}
