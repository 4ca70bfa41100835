package bench

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// A histogram distinguishes 1 µs at its low end and three digits everywhere; what takes longer
	// than its high end is recorded as the high end.
	histogramUnit   = time.Microsecond
	histogramMax    = 2 * MaxDuration
	histogramDigits = 3
	// maxShards bounds the memory of histograms when there are thousands of clients.
	maxShards = 16
)

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(histogramUnit), int64(histogramMax), histogramDigits)
}

func recordInto(h *hdrhistogram.Histogram, d time.Duration, n int64) {
	// The value is within the histogram's range, so recording it cannot fail.
	_ = h.RecordValues(int64(min(max(d, histogramUnit), histogramMax)), n)
}

// recorder collects outcomes from many goroutines. Clients share its shards, a lock each, which are
// merged when the run is over.
type recorder struct {
	shards []shard
	errors errorTally
}

type shard struct {
	mu      sync.Mutex                // guards what follows
	latency []*hdrhistogram.Histogram // by kind, from when the request was due
	service []*hdrhistogram.Histogram // by kind, from when it was sent; nil in a closed loop, where that is the same
	done    int64                     // requests that have ended, failed ones included
	last    time.Time                 // the latest end of a request
	holds   bool                      // what took long is held until sort
	held    []held
	aside   int64 // requests that waited while the machine stood still
}

// held is a request that took long.
type held struct {
	kind             int
	at               time.Time // its end
	latency, service time.Duration
}

const (
	// holdFrom is the latency from which a request may have waited while the machine stood still.
	holdFrom = 2 * time.Millisecond
	// maxHeld bounds what a shard holds; what comes then counts.
	maxHeld = 1 << 20
)

func newRecorder(kinds, clients int, open, holds bool) *recorder {
	r := &recorder{shards: make([]shard, max(1, min(clients, maxShards)))}
	for i := range r.shards {
		s := &r.shards[i]
		s.holds = holds
		for range kinds {
			s.latency = append(s.latency, newHistogram())
			if open {
				s.service = append(s.service, newHistogram())
			}
		}
	}
	return r
}

// succeed counts a request that ended well.
func (r *recorder) succeed(client, kind int, at time.Time, latency, service time.Duration) {
	s := &r.shards[client%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds && latency >= holdFrom && len(s.held) < maxHeld {
		s.held = append(s.held, held{kind, at, latency, service})
	} else {
		s.record(kind, latency, service)
	}
	s.end(at, 1)
}

// succeedAll counts n of a closed loop that ended well at the same time, and took the same time. They are not held.
func (r *recorder) succeedAll(client, kind int, n int64, at time.Time, latency time.Duration) {
	s := &r.shards[client%len(r.shards)]
	s.mu.Lock()
	defer s.mu.Unlock()
	recordInto(s.latency[kind], latency, n)
	s.end(at, n)
}

// record notes how long a request took; the caller holds s.mu.
func (s *shard) record(kind int, latency, service time.Duration) {
	recordInto(s.latency[kind], latency, 1)
	if s.service != nil {
		recordInto(s.service[kind], service, 1)
	}
}

// sort notes how long those took that were held, and sets those aside that waited while the machine stood still.
func (r *recorder) sort(stoodStill func(from, to time.Time) bool) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for _, h := range s.held {
			if stoodStill(h.at.Add(-h.latency), h.at) {
				s.aside++
			} else {
				s.record(h.kind, h.latency, h.service)
			}
		}
		s.held = nil
		s.mu.Unlock()
	}
}

// setAside is how many requests sort has set aside.
func (r *recorder) setAside() (n int64) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		n += s.aside
		s.mu.Unlock()
	}
	return n
}

// fail counts a request that did not.
func (r *recorder) fail(client int, at time.Time, err error) {
	s := &r.shards[client%len(r.shards)]
	s.mu.Lock()
	s.end(at, 1)
	s.mu.Unlock()
	r.errors.add(err)
}

// end counts n requests; the caller holds s.mu.
func (s *shard) end(at time.Time, n int64) {
	s.done += n
	if at.After(s.last) {
		s.last = at
	}
}

// ended is how many requests have ended, and when the latest one did.
func (r *recorder) ended() (done int64, last time.Time) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		done += s.done
		if s.last.After(last) {
			last = s.last
		}
		s.mu.Unlock()
	}
	return done, last
}

// merged is the histogram of latencies of a kind over all shards.
func (r *recorder) merged(kind int) *hdrhistogram.Histogram {
	return r.merge(func(s *shard) *hdrhistogram.Histogram { return s.latency[kind] })
}

// mergedService is the histogram of service times of a kind; nil in a closed loop.
func (r *recorder) mergedService(kind int) *hdrhistogram.Histogram {
	if r.shards[0].service == nil {
		return nil
	}
	return r.merge(func(s *shard) *hdrhistogram.Histogram { return s.service[kind] })
}

func (r *recorder) merge(of func(*shard) *hdrhistogram.Histogram) *hdrhistogram.Histogram {
	sum := newHistogram()
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		sum.Merge(of(s))
		s.mu.Unlock()
	}
	return sum
}

// errorTally counts failures by code and keeps the first message of each.
type errorTally struct {
	mu     sync.Mutex // guards byCode
	byCode map[string]*ErrorCount
}

// ErrorCount is how often a kind of failure happened.
type ErrorCount struct {
	Code    string `json:"code"` // gRPC's name of the code, or WrongAnswer
	Count   int64  `json:"count"`
	Example string `json:"example"` // the first message
}

func errorCode(err error) string {
	switch {
	case errors.Is(err, errWrongAnswer):
		return "WrongAnswer"
	case errors.Is(err, context.Canceled):
		return codes.Canceled.String()
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded.String()
	}
	return status.Code(err).String()
}

func (t *errorTally) add(err error) {
	code := errorCode(err)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byCode == nil {
		t.byCode = make(map[string]*ErrorCount)
	}
	if t.byCode[code] == nil {
		t.byCode[code] = &ErrorCount{Code: code, Example: err.Error()}
	}
	t.byCode[code].Count++
}

// counts is the tally, the most frequent first.
func (t *errorTally) counts() []ErrorCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []ErrorCount
	for _, c := range t.byCode {
		out = append(out, *c)
	}
	slices.SortFunc(out, func(a, b ErrorCount) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Code, b.Code))
	})
	return out
}

func total(counts []ErrorCount) (n int64) {
	for _, c := range counts {
		n += c.Count
	}
	return n
}
