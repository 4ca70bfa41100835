package bench

import (
	"context"
	"sync"
	"time"
)

// starting puts a phase's load on without a goroutine for each client: answers begin the next requests.
type starting struct {
	ctx, life context.Context
	rec       *recorder
	over      *sync.WaitGroup // one for each client that is not done yet
	abandoned []int64         // for each client: its requests that were cut off by the end of life
}

// closed has each client begin a request when its last one has been answered, until the pacer says that it is enough.
func (s *starting) closed(starts []Start, pace *closedLoop) {
	s.over.Add(len(starts))
	for i, start := range starts {
		c := &closedClient{starting: s, number: i, start: start, pace: pace, backoff: backoffMin}
		c.done = c.ended
		c.next()
	}
}

type closedClient struct {
	*starting
	number  int
	start   Start
	pace    *closedLoop
	backoff time.Duration
	due     time.Time
	done    func(Outcome, error) // ended, made once
}

func (c *closedClient) next() {
	due, ok := c.pace.next(c.ctx)
	if !ok {
		c.over.Done()
		return
	}
	c.due = due
	c.start(due, c.done)
}

func (c *closedClient) ended(out Outcome, err error) {
	now := time.Now()
	took := now.Sub(c.due)
	switch {
	case err == nil:
		c.rec.succeed(c.number, out.Kind, now, took, took)
		c.backoff = backoffMin
		c.next()
	case c.life.Err() != nil:
		c.abandoned[c.number]++
		c.over.Done()
	default:
		c.rec.fail(c.number, now, err)
		time.AfterFunc(c.backoff, c.next) // the client is not over before, so it is awaited
		c.backoff = min(2*c.backoff, backoffMax)
	}
}

// open begins each request when it is due, with a client that is free, and returns when all have ended.
func (s *starting) open(starts []Start, pace *openLoop) {
	free := make(chan *openClient, len(starts))
	for i, start := range starts {
		c := &openClient{starting: s, number: i, start: start, free: free}
		c.done = c.ended
		free <- c
	}
	for {
		c := <-free
		due, ok := pace.next(s.ctx)
		if !ok {
			free <- c
			break
		}
		c.due, c.sent = due, time.Now()
		c.start(due, c.done)
	}
	for range starts {
		<-free
	}
}

type openClient struct {
	*starting
	number    int
	start     Start
	free      chan *openClient // has room for all
	due, sent time.Time
	done      func(Outcome, error) // ended, made once
}

func (c *openClient) ended(out Outcome, err error) {
	now := time.Now()
	switch {
	case err == nil:
		c.rec.succeed(c.number, out.Kind, now, now.Sub(c.due), now.Sub(c.sent))
	case c.life.Err() != nil:
		c.abandoned[c.number]++
	default:
		c.rec.fail(c.number, now, err)
	}
	c.free <- c
}
