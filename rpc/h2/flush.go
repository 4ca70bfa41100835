package h2

import (
	"runtime"
	"sync"
)

// flusher writes what answers have left in the buffers of connections. Answers come in bulk from
// a goroutine that has more to do than to write: it only notes the connection, once, and by the
// time the flusher gets to it more answers for it have gathered.
type flusher struct {
	mu sync.Mutex
	// Guarded by mu.
	todo     []*Conn
	sleeping bool
	closed   bool
	wake     sync.Cond
	ended    chan struct{}
}

func newFlusher() *flusher {
	f := &flusher{ended: make(chan struct{})}
	f.wake.L = &f.mu
	go f.run() // ended by close, which waits
	return f
}

// add has c flushed soon.
func (f *flusher) add(c *Conn) {
	f.mu.Lock()
	f.todo = append(f.todo, c)
	if f.sleeping {
		f.sleeping = false
		f.wake.Signal()
	}
	f.mu.Unlock()
}

func (f *flusher) run() {
	defer close(f.ended)
	var todo []*Conn
	for {
		f.mu.Lock()
		for len(f.todo) == 0 {
			if f.closed {
				f.mu.Unlock()
				return
			}
			f.sleeping = true
			f.wake.Wait()
		}
		f.mu.Unlock()
		// Whoever answers in bulk is let go on first.
		runtime.Gosched()
		f.mu.Lock()
		todo, f.todo = f.todo, todo[:0]
		f.mu.Unlock()
		for i, c := range todo {
			c.flush()
			todo[i] = nil
		}
	}
}

// close ends the flusher when nothing is left to do.
func (f *flusher) close() {
	f.mu.Lock()
	f.closed, f.sleeping = true, false
	f.wake.Signal()
	f.mu.Unlock()
	<-f.ended
}
