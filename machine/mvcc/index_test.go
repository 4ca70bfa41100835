package mvcc

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

// check verifies the structure of a version of the index and returns its keys.
func (r *root) check(t *testing.T) []string {
	t.Helper()
	var keys []string
	var walk func(c *child) (size, depth int)
	walk = func(c *child) (size, depth int) {
		switch {
		case c.leaf != nil && c.inner == nil:
			for i := range c.leaf.n {
				keys = append(keys, c.leaf.items[i].key)
			}
			size, depth = c.leaf.n, 1
		case c.inner != nil && c.leaf == nil:
			for i := range c.inner.n {
				n, d := walk(&c.inner.kids[i])
				if i > 0 && d != depth {
					t.Fatalf("children of one node have depths %d and %d", depth, d)
				}
				if first := keys[len(keys)-n]; i > 0 && c.inner.kids[i].low > first {
					t.Fatalf("low key %q is above %q", c.inner.kids[i].low, first)
				}
				if i > 0 && c.inner.kids[i].low <= keys[len(keys)-n-1] {
					t.Fatalf("low key %q is not above its left neighbour", c.inner.kids[i].low)
				}
				size, depth = size+n, d
			}
			depth++
		case c.size != 0:
			t.Fatalf("a child without node has size %d", c.size)
		}
		if size != c.size || size == 0 && c != &r.child {
			t.Fatalf("a subtree of %d keys has size %d", size, c.size)
		}
		return size, depth
	}
	walk(&r.child)
	for i := 1; i < len(keys); i++ {
		if keys[i-1] >= keys[i] {
			t.Fatalf("keys out of order: %q, %q", keys[i-1], keys[i])
		}
	}
	return keys
}

// TestIndexModel compares the index with a map, and every frozen version with
// what the map was at that time, while later changes go on.
func TestIndexModel(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var tr tree
		model := make(map[string]int64)
		type frozen struct {
			root  root
			model map[string]int64
		}
		var versions []frozen
		space := []int{40, 1000, 20000}[seed%3]
		for step := range int64(12000) {
			// Phases of growth and of shrinking.
			grow := 70
			if step/3000%2 == 1 {
				grow = 25
			}
			key := fmt.Sprintf("%05d", rng.IntN(space))
			if rng.IntN(100) < grow {
				it, existed := tr.put(key)
				if _, ok := model[key]; ok != existed {
					t.Fatalf("put says that %s existed: %t", key, existed)
				}
				it.mod, model[key] = step, step
			} else {
				_, ok := model[key]
				if tr.remove(key) != ok {
					t.Fatalf("remove says that %s existed: %t", key, !ok)
				}
				delete(model, key)
			}
			if rng.IntN(1500) == 0 {
				versions = append(versions, frozen{tr.freeze(), maps.Clone(model)})
			}
		}
		versions = append(versions, frozen{tr.freeze(), model})
		for _, v := range versions {
			compareIndex(t, rng, &v.root, v.model)
		}
	}
}

func compareIndex(t *testing.T, rng *rand.Rand, r *root, model map[string]int64) {
	t.Helper()
	want := slices.Sorted(maps.Keys(model))
	if got := r.check(t); !slices.Equal(got, want) {
		t.Fatalf("index has %d keys, want %d", len(got), len(want))
	}
	for range 200 {
		from, to := fmt.Sprintf("%05d", rng.IntN(25000)), fmt.Sprintf("%05d", rng.IntN(25000))
		lo, found := slices.BinarySearch(want, from)
		if it := r.get(from); (it != nil) != found || found && it.mod != model[from] {
			t.Fatalf("get of %s: %v, want %t", from, it, found)
		}
		if got := r.rank(from); got != lo {
			t.Fatalf("rank of %s is %d, want %d", from, got, lo)
		}
		hi, _ := slices.BinarySearch(want, to)
		sp := spanOf([]byte(from), []byte(to))
		if got := sp.count(r); got != max(0, hi-lo) {
			t.Fatalf("count of [%s,%s) is %d, want %d", from, to, got, max(0, hi-lo))
		}
		var seen []string
		sp.each(r, func(it *item) bool {
			seen = append(seen, it.key)
			return true
		})
		if !slices.Equal(seen, want[lo:max(lo, hi)]) {
			t.Fatalf("keys of [%s,%s) differ", from, to)
		}
		seen = nil
		r.ascendRank(lo, func(it *item) bool {
			seen = append(seen, it.key)
			return len(seen) < 50
		})
		if !slices.Equal(seen, want[lo:min(lo+50, len(want))]) {
			t.Fatalf("50 keys from rank %d differ", lo)
		}
	}
}

// TestIndexOrders builds trees in several orders and takes them apart
// in several others.
func TestIndexOrders(t *testing.T) {
	const n = 5000
	orders := map[string]func(i int) int{
		"ascending":  func(i int) int { return i },
		"descending": func(i int) int { return n - 1 - i },
		"scattered":  func(i int) int { return i * 1777 % n },
		"runs":       func(i int) int { return i%50*100 + i/50 },
	}
	for in, at := range orders {
		for out, from := range orders {
			var tr tree
			for i := range n {
				tr.put(fmt.Sprintf("%05d", at(i)))
			}
			full := tr.freeze()
			if got := len(full.check(t)); got != n {
				t.Fatalf("%s: %d keys of %d", in, got, n)
			}
			for i := range n {
				if !tr.remove(fmt.Sprintf("%05d", from(i))) {
					t.Fatalf("%s, %s: key %d is missing", in, out, from(i))
				}
				if i == n/2 {
					tr.root.check(t)
				}
			}
			if tr.root.child != (child{}) {
				t.Fatalf("%s, %s: the empty tree has nodes left", in, out)
			}
			if got := len(full.check(t)); got != n {
				t.Fatalf("%s, %s: the frozen tree lost keys: %d", in, out, got)
			}
		}
	}
}

// TestIndexMemory holds the index to its budget: 100 bytes per key beside the
// key itself.
func TestIndexMemory(t *testing.T) {
	const n = 200_000
	key := func(i int) string { return fmt.Sprintf("/registry/pods/%08d", i) } // 23 bytes, 24 allocated
	for name, order := range map[string]func(i int) int{
		"ascending": func(i int) int { return i },
		"scattered": func(i int) int { return i * 7919 % n },
	} {
		before := heapInUse()
		var tr tree
		for i := range n {
			tr.put(key(order(i)))
		}
		perKey := float64(heapInUse()-before) / n
		t.Logf("%s: %.1f bytes per key with the key", name, perKey)
		if limit := 100.0 + float64(len(key(0))); perKey > limit {
			t.Errorf("%s: %.1f bytes per key, more than %.0f", name, perKey, limit)
		}
		runtime.KeepAlive(&tr)
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
