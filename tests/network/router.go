package network

import (
	"container/heap"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// Rule is what happens to the packets in one direction. The zero value lets all pass at once.
type Rule struct {
	Loss      float64       // share of packets that are lost; 1 cuts the direction
	Duplicate float64       // share of packets that arrive twice
	Delay     time.Duration // of every packet
	Jitter    time.Duration // further delay of each, at random up to this, by which packets overtake others
	Rate      int64         // bytes in a second; 0 is no limit
}

// Cut loses every packet.
var Cut = Rule{Loss: 1}

// Counts are packets. One that is duplicated is passed twice.
type Counts struct {
	Passed, Lost, Duplicated, Delayed int64
	Overflowed                        int64 // lost because maxUnderWay were under way
}

// maxUnderWay bounds the packets that wait in the router. More than that are lost, as a real router loses them.
const maxUnderWay = 1 << 14

type direction struct{ from, to int }

// router passes packets between hosts. It neither knows where they come from nor what is in them but the destination,
// which it is told.
type router struct {
	lines map[int]io.Writer // what takes packets to a host

	mu     sync.Mutex
	rand   *rand.Rand              // Guarded by mu.
	rules  map[direction]Rule      // Guarded by mu.
	busy   map[direction]time.Time // until when a limited direction is sending. Guarded by mu.
	queue  underWay                // Guarded by mu.
	sent   uint64                  // orders packets of one moment. Guarded by mu.
	counts Counts                  // Guarded by mu.

	changed chan struct{} // the first of the queue is another; holds one
	ended   chan struct{}
	worker  sync.WaitGroup
}

func newRouter(lines map[int]io.Writer, r *rand.Rand) *router {
	rt := &router{
		lines: lines, rand: r,
		rules: map[direction]Rule{}, busy: map[direction]time.Time{},
		changed: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	rt.worker.Go(rt.deliver) // close ends it and waits
	return rt
}

func (rt *router) close() {
	close(rt.ended)
	rt.worker.Wait()
}

func (rt *router) set(from, to int, r Rule) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.rules[direction{from, to}] = r
}

func (rt *router) heal() {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	clear(rt.rules)
	clear(rt.busy)
}

func (rt *router) counted() Counts {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.counts
}

// pass takes one packet, which it does not keep.
func (rt *router) pass(from, to int, data []byte) {
	line := rt.lines[to]
	if line == nil {
		return // no such host: a broadcast, or an address that nobody has
	}
	if rt.hold(direction{from, to}, line, data) {
		return
	}
	_, _ = line.Write(data) // a host that does not take it has lost it
}

// hold applies the rule, and reports whether nothing is left to be done at once.
func (rt *router) hold(d direction, line io.Writer, data []byte) bool {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	r, ok := rt.rules[d]
	if !ok {
		rt.counts.Passed++
		return false
	}
	copies := 1
	if r.Duplicate > 0 && rt.rand.Float64() < r.Duplicate {
		rt.counts.Duplicated++
		copies = 2
	}
	for range copies {
		if r.Loss > 0 && rt.rand.Float64() < r.Loss {
			rt.counts.Lost++
			continue
		}
		rt.enqueue(rt.due(d, r, len(data)), line, data)
	}
	return true
}

// due is when a packet arrives. The caller holds mu.
func (rt *router) due(d direction, r Rule, size int) time.Time {
	at := time.Now()
	if r.Rate > 0 {
		if rt.busy[d].After(at) {
			at = rt.busy[d]
		}
		at = at.Add(time.Duration(float64(size) / float64(r.Rate) * float64(time.Second)))
		rt.busy[d] = at
	}
	at = at.Add(r.Delay)
	if r.Jitter > 0 {
		at = at.Add(time.Duration(rt.rand.Int64N(int64(r.Jitter))))
	}
	return at
}

// enqueue puts a packet on its way. The caller holds mu.
func (rt *router) enqueue(at time.Time, line io.Writer, data []byte) {
	if len(rt.queue) >= maxUnderWay {
		rt.counts.Overflowed++
		return
	}
	rt.counts.Delayed++
	rt.sent++
	heap.Push(&rt.queue, &packet{due: at, order: rt.sent, line: line, data: append([]byte(nil), data...)})
	if rt.queue[0].order == rt.sent {
		select {
		case rt.changed <- struct{}{}:
		default:
		}
	}
}

// deliver hands over what waits, when it is due.
func (rt *router) deliver() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		due, wait := rt.takeDue(time.Now())
		for _, p := range due {
			_, _ = p.line.Write(p.data)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-rt.changed:
		case <-rt.ended:
			return
		}
	}
}

// takeDue removes what is due, in its order, and says how long nothing else is.
func (rt *router) takeDue(now time.Time) ([]*packet, time.Duration) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	var due []*packet
	for len(rt.queue) > 0 && !rt.queue[0].due.After(now) {
		due = append(due, heap.Pop(&rt.queue).(*packet))
		rt.counts.Passed++
	}
	if len(rt.queue) == 0 {
		return due, time.Hour // changed wakes the worker earlier
	}
	return due, rt.queue[0].due.Sub(now)
}

type packet struct {
	due   time.Time
	order uint64
	line  io.Writer
	data  []byte
}

// underWay is a heap of packets, the earliest first.
type underWay []*packet

func (q underWay) Len() int      { return len(q) }
func (q underWay) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q underWay) Less(i, j int) bool {
	if !q[i].due.Equal(q[j].due) {
		return q[i].due.Before(q[j].due)
	}
	return q[i].order < q[j].order
}
func (q *underWay) Push(x any) { *q = append(*q, x.(*packet)) }
func (q *underWay) Pop() any {
	old := *q
	p := old[len(old)-1]
	*q = old[:len(old)-1]
	return p
}
