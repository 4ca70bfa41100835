package bench

import (
	"context"
	"math"
	"sync/atomic"
	"time"
)

// schedule is an open loop's timetable: request n is due at start + n/rate, until the end. It is
// pure arithmetic; request numbers multiply instead of intervals adding up, so it does not drift.
type schedule struct {
	start time.Time
	end   time.Time
	rate  float64 // requests per second
	total int64   // 0: as many as fit before the end
}

// due is when request n is to be sent.
func (s schedule) due(n int64) time.Time {
	return s.start.Add(time.Duration(float64(n) / s.rate * float64(time.Second)))
}

// dueBefore is how many requests are due before t.
func (s schedule) dueBefore(t time.Time) int64 {
	if t.After(s.end) {
		t = s.end
	}
	if !t.After(s.start) {
		return 0
	}
	n := int64(math.Ceil(t.Sub(s.start).Seconds() * s.rate))
	if s.total > 0 {
		n = min(n, s.total)
	}
	return n
}

// pacer says when the next request is due. next waits until then, for any number of clients at once;
// it reports false when the phase is over, and then keeps doing so.
type pacer interface {
	next(ctx context.Context) (due time.Time, ok bool)
	// unsent is how many requests were due before t and have not been handed out.
	unsent(t time.Time) int64
}

// closedLoop hands a request to whoever asks: each client waits for its answer before it sends again.
type closedLoop struct {
	end   time.Time
	total int64 // 0: no limit
	taken atomic.Int64
}

func (p *closedLoop) next(ctx context.Context) (time.Time, bool) {
	if p.total > 0 && p.taken.Add(1) > p.total {
		return time.Time{}, false
	}
	now := time.Now()
	return now, now.Before(p.end) && ctx.Err() == nil
}

func (p *closedLoop) unsent(time.Time) int64 { return 0 }

// openLoop hands out requests as they fall due. When all clients are busy the requests wait, and
// their latency counts from when they were due.
type openLoop struct {
	schedule schedule
	sleep    func(context.Context, time.Time) bool // waits until a time, and reports false if ctx ended before
	taken    atomic.Int64                          // requests handed out or waited for
	dropped  atomic.Int64                          // requests waited for when the phase ended
}

func (p *openLoop) next(ctx context.Context) (time.Time, bool) {
	if !time.Now().Before(p.schedule.end) || ctx.Err() != nil {
		return time.Time{}, false
	}
	n := p.taken.Add(1) - 1
	due := p.schedule.due(n)
	if (p.schedule.total > 0 && n >= p.schedule.total) || !due.Before(p.schedule.end) {
		p.dropped.Add(1)
		return time.Time{}, false
	}
	if !p.sleep(ctx, due) {
		p.dropped.Add(1)
		return time.Time{}, false
	}
	return due, true
}

func (p *openLoop) unsent(t time.Time) int64 {
	sent := p.taken.Load() - p.dropped.Load()
	return max(0, p.schedule.dueBefore(t)-sent)
}

// sleepUntil waits until t and reports whether it came to that before ctx ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	wait := time.Until(t)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
