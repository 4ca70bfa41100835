package sim

import (
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// draws is a stream of what chance decides.
type draws struct{ *rand.Rand }

// drawsOf returns the stream of one part of a run. Each has its own, so that what
// one draws does not depend on whether another is there.
func drawsOf(seed uint64, part string) draws {
	h := fnv.New64a()
	h.Write([]byte(part))
	return draws{rand.New(rand.NewPCG(seed, h.Sum64()))}
}

// draw returns a number in [0, n).
func (d draws) draw(n int) int { return d.IntN(n) }

// chance is true so many times of a hundred.
func (d draws) chance(percent int) bool { return d.draw(100) < percent }

// between draws a time.
func (d draws) between(least, most time.Duration) time.Duration {
	if most <= least {
		return least
	}
	return least + time.Duration(d.Int64N(int64(most-least)))
}

// Parts of a run can be left out of it: faults, clients and watchers, by numbers, and
// what is done at all, by name. A run without some of them is another run, but what
// is left of it does what it did, as far as it is not a consequence.
const (
	aFault   = "f"
	aClient  = "c"
	aWatcher = "w"

	lossPart     = "loss" // of messages
	doublingPart = "doubling"
	disorderPart = "disorder"
	startsPart   = "starts"   // that end in a crash
	installsPart = "installs" // of snapshots, that do
)

// numbered names a part that has a number.
func numbered(kind string, n int) string { return kind + strconv.Itoa(n) }

// partSet is a set of them, by their names.
type partSet map[string]bool

// String writes them as they are read, numbers that follow each other as "f3-7".
func (p partSet) String() string {
	var out []string
	numbers := map[string][]int{}
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if kind, n, ok := number(name); ok {
			numbers[kind] = append(numbers[kind], n)
		} else {
			out = append(out, name)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(numbers)) {
		ns := numbers[kind]
		slices.Sort(ns)
		for i := 0; i < len(ns); {
			j := i + 1
			for j < len(ns) && ns[j] == ns[j-1]+1 {
				j++
			}
			name := numbered(kind, ns[i])
			if j > i+1 {
				name += "-" + strconv.Itoa(ns[j-1])
			}
			out = append(out, name)
			i = j
		}
	}
	return strings.Join(out, ",")
}

// number takes the name of a numbered part apart.
func number(name string) (kind string, n int, ok bool) {
	if len(name) < 2 {
		return "", 0, false
	}
	n, err := strconv.Atoi(name[1:])
	return name[:1], n, err == nil
}

// Set reads what String writes; it implements flag.Value.
func (p *partSet) Set(s string) error {
	*p = partSet{}
	for name := range strings.SplitSeq(s, ",") {
		from, to, many := strings.Cut(name, "-")
		kind, first, ok := number(from)
		if !many || !ok {
			if name != "" {
				(*p)[name] = true
			}
			continue
		}
		last, err := strconv.Atoi(to)
		if err != nil {
			return fmt.Errorf("sim: %q names no parts", name)
		}
		for n := first; n <= last; n++ {
			(*p)[numbered(kind, n)] = true
		}
	}
	return nil
}

// with returns p and more.
func (p partSet) with(more []string) partSet {
	all := maps.Clone(p)
	if all == nil {
		all = partSet{}
	}
	for _, name := range more {
		all[name] = true
	}
	return all
}

// count returns how many parts of a kind are there.
func count(names []string, kind string) (n int) {
	for _, name := range names {
		if k, _, ok := number(name); ok && k == kind {
			n++
		}
	}
	return n
}

// parts returns what this run could have been without, faults first, the last one
// first of all.
func (w *world) parts() (names []string) {
	for n := w.faults - 1; n >= 0; n-- {
		names = append(names, numbered(aFault, n))
	}
	for n := range w.plan.Watchers {
		names = append(names, numbered(aWatcher, n))
	}
	for n := range w.plan.Clients {
		names = append(names, numbered(aClient, n))
	}
	for _, k := range clientKinds {
		names = append(names, k.name)
	}
	names = append(names, lossPart, doublingPart, disorderPart, startsPart, installsPart)
	return slices.DeleteFunc(names, func(name string) bool { return w.without[name] })
}

// course is what a run follows from.
type course struct {
	seed    uint64
	canary  string        // a defect that is to be found
	without partSet       // what is left out
	until   time.Duration // when the faults end, if before their time
}

// String is the line that replays it.
func (c course) String() string {
	line := fmt.Sprintf("go test ./sim -count 1 -run '^TestSeeds$' -args -sim.seed=%d -sim.seeds=1", c.seed)
	if c.canary != "" {
		line += " -sim.canary=" + c.canary
	}
	if len(c.without) > 0 {
		line += " -sim.without=" + c.without.String()
	}
	if c.until > 0 {
		line += " -sim.until=" + c.until.String()
	}
	return line
}

// has tells whether a part is there.
func (w *world) has(part string) bool { return !w.without[part] }
