package peer

import (
	"sync"

	"go.etcd.io/raft/v3/raftpb"
)

// Bounds of what waits for one stream.
const (
	maxQueued        = 4096
	maxQueuedEntries = 64 << 20
	maxQueuedControl = 16 << 20
)

// queue holds the messages that wait for a stream, in a ring. Any goroutine
// puts, one takes.
type queue struct {
	wake  chan struct{} // capacity 1; says that there is something
	limit int           // of bytes

	mu sync.Mutex
	// Guarded by mu, as all below.
	ring  [maxQueued]queued
	first int
	count int
	bytes int
}

type queued struct {
	message *raftpb.Message
	size    int
}

func newQueue(limit int) *queue { return &queue{wake: make(chan struct{}, 1), limit: limit} }

// put appends m, or returns false when there is no room. An empty queue has
// room for any message.
func (q *queue) put(m *raftpb.Message) bool {
	size := sizeOf(m)
	q.mu.Lock()
	if q.count == maxQueued || q.count > 0 && q.bytes+size > q.limit {
		q.mu.Unlock()
		return false
	}
	q.ring[(q.first+q.count)%maxQueued] = queued{m, size}
	q.count++
	q.bytes += size
	q.mu.Unlock()
	wake(q.wake)
	return true
}

// take appends the oldest messages to ms until they have the given bytes.
func (q *queue) take(ms []*raftpb.Message, bytes int) []*raftpb.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	for taken := 0; q.count > 0 && taken < bytes; {
		e := &q.ring[q.first]
		ms = append(ms, e.message)
		taken += e.size
		q.bytes -= e.size
		*e = queued{}
		q.first = (q.first + 1) % maxQueued
		q.count--
	}
	return ms
}

// clear drops what waits and returns how many messages that were.
func (q *queue) clear() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := q.count
	for ; q.count > 0; q.count-- {
		q.ring[q.first] = queued{}
		q.first = (q.first + 1) % maxQueued
	}
	q.bytes = 0
	return n
}

func (q *queue) size() (count, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.count, q.bytes
}

// sizeOf estimates the encoded size of a message, cheaply, for raft's goroutine
// asks.
func sizeOf(m *raftpb.Message) int {
	const message, entry = 64, 24 // what is around the data
	size := message + len(m.Context)
	for _, e := range m.Entries {
		size += entry + len(e.Data)
	}
	return size
}
