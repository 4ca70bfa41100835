package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coteriedb/coterie/bench"
)

const (
	fillValueBytes = 32 << 10
	fillClients    = 16
	fillConns      = 8
	// The puts at a fixed rate.
	steadyClients = 64
	steadyConns   = 8
	// steadyTimeout is far beyond what any disk takes for what may be written.
	steadyTimeout = 30 * time.Minute

	catchUpPart = "catch-up"
)

// The states of the cluster in a round, in their order.
const (
	allUp    = "all members up"
	oneDown  = "one of three members down"
	catching = "it catches up"
)

// catchUp measures a cluster's puts while a member that was down gets what it has missed, which is more than the log is
// kept for. The puts are due at a fixed rate and go to the leader. All rounds are of one cluster, whose data has the same
// size in every state: what a round writes replaces what the one before wrote.
type catchUp struct{ comparison }

// caughtUp is what the rounds measured; as JSON it lies beside the page.
type caughtUp struct {
	Name        string         `json:"name"`
	Environment environment    `json:"environment"`
	Bytes       int64          `json:"bytes"` // of values that the member misses in a round
	Rate        float64        `json:"rate"`
	Rounds      []catchUpRound `json:"rounds"`
}

type catchUpRound struct {
	FillSeconds float64 `json:"fill_seconds"`     // that it took to write what the member missed
	Seconds     float64 `json:"catch_up_seconds"` // from the start of the member's process until it had applied all
	Phases      []phase `json:"phases"`           // in the order of the states
}

// phase is the load of puts in one of the states of the cluster.
type phase struct {
	State string        `json:"state"`
	Puts  *bench.Report `json:"puts"`
}

func (c catchUp) run(ctx context.Context, env environment) (res *caughtUp, failure error) {
	count := max(1, int64(c.settings.gigabytes*1e9/fillValueBytes))
	res = &caughtUp{Name: catchUpPart, Environment: env, Bytes: count * fillValueBytes, Rate: c.settings.rate}
	// Two versions of the data at a time, and what is not yet given back.
	quota := fmt.Sprintf("--quota-backend-bytes=%d", 8*res.Bytes+4<<30)
	v, err := start(ctx, c.sides[coterieSide], c.work, serverOptions{members: 3, flags: []string{quota}})
	if err != nil {
		return nil, err
	}
	defer func() { failure = errors.Join(failure, v.stop()) }()

	c.progress.step("writing %d values of %d bytes", count, fillValueBytes)
	if _, err := c.fill(ctx, v, count, 0); err != nil {
		return nil, fmt.Errorf("writing the first data: %w\n%s", err, v.logTail())
	}
	for n := range c.settings.rounds {
		c.progress.round(n+1, c.settings.rounds)
		round, err := c.round(ctx, v, count, n+1)
		if err == nil {
			err = ctx.Err() // an interrupt ends a load as if that were its end
		}
		if err != nil {
			return nil, fmt.Errorf("round %d: %w\n%s", n+1, err, v.logTail())
		}
		res.Rounds = append(res.Rounds, round)
	}
	return res, nil
}

// round measures the puts in each state of the cluster once.
func (c catchUp) round(ctx context.Context, v *server, count int64, number int) (r catchUpRound, err error) {
	late := v.members[2]
	measure := func(state string, until func(context.Context) error) error {
		report, err := v.steadyPuts(ctx, c.settings, until)
		if err == nil {
			err = report.Err()
		}
		if err != nil {
			return fmt.Errorf("puts while %s: %w", state, err)
		}
		r.Phases = append(r.Phases, phase{State: state, Puts: report})
		c.progress.step("%-28s p50 %s  p99 %s", state, millis(report.Latency.P50US), millis(report.Latency.P99US))
		return nil
	}
	if err := measure(allUp, nil); err != nil {
		return r, err
	}
	if err := late.end(); err != nil {
		return r, err
	}
	if r.FillSeconds, err = c.fill(ctx, v, count, number); err != nil {
		return r, fmt.Errorf("writing what the member will have missed: %w", err)
	}
	if err := measure(oneDown, nil); err != nil {
		return r, err
	}
	err = measure(catching, func(ctx context.Context) (err error) {
		r.Seconds, err = c.bringBack(ctx, v, late)
		return err
	})
	if err == nil {
		err = v.settle(ctx)
	}
	return r, err
}

// fill writes so many values, each under a key of its own, discards those that an earlier call wrote, has their space
// given back, and waits until the server is at rest.
func (c catchUp) fill(ctx context.Context, v *server, count int64, number int) (seconds float64, err error) {
	load, err := bench.NewPut(bench.Data{
		Prefix: "fill/", Keys: int(count), KeySize: 24, ValueSize: fillValueBytes, Sequential: true, Seed: uint64(2 + number),
	})
	if err != nil {
		return 0, err
	}
	target := v.members[0].target()
	target.Conns = fillConns
	pool, err := bench.Dial(ctx, target)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	report, err := bench.Run(ctx, pool, load, bench.Plan{Clients: fillClients, Total: count, Duration: bench.MaxDuration})
	if err != nil {
		return 0, err
	}
	if report.Succeeded < count {
		return 0, fmt.Errorf("only %d of %d values were written", report.Succeeded, count)
	}
	if err := v.compact(ctx); err != nil {
		return 0, fmt.Errorf("discarding old values: %w", err)
	}
	if err := v.settle(ctx); err != nil {
		return 0, err
	}
	// What is discarded leaves the files in the course of later writes, which would be those that are measured.
	if err := v.defragment(ctx); err != nil {
		return 0, fmt.Errorf("giving back the space of old values: %w", err)
	}
	return tenths(report.Seconds), v.settle(ctx)
}

// bringBack starts the member and waits until it has applied all that the leader had committed a moment before.
func (c catchUp) bringBack(ctx context.Context, v *server, late *member) (seconds float64, err error) {
	began := time.Now()
	if err := late.launch(); err != nil {
		return 0, err
	}
	var goal uint64
	err = poll(ctx, func() (bool, error) {
		select {
		case <-late.exited:
			return false, fmt.Errorf("the member that was to catch up has ended: %w", late.exitErr)
		default:
		}
		mine, err := late.status(ctx)
		if err == nil && goal > 0 && mine.RaftAppliedIndex >= goal {
			return true, nil
		}
		if leaders, err := v.members[0].status(ctx); err == nil {
			goal = leaders.RaftIndex
		}
		return false, nil
	}, func(err error) error { return fmt.Errorf("the member has not caught up: %w", err) })
	return tenths(time.Since(began).Seconds()), err
}

// median is the median over the rounds of a number of a state.
func (r *caughtUp) median(state string, of func(*bench.Report) float64) float64 {
	var all []float64
	for _, round := range r.Rounds {
		all = append(all, of(round.puts(state)))
	}
	return median(all)
}

// times is the median over the rounds of how many times that of a round with all members up a number of a state is.
func (r *caughtUp) times(state string, of func(*bench.Report) float64) float64 {
	var all []float64
	for _, round := range r.Rounds {
		if with := of(round.puts(allUp)); with > 0 {
			all = append(all, of(round.puts(state))/with)
		}
	}
	return median(all)
}

// puts is the report of a state; every complete round has one.
func (r catchUpRound) puts(state string) *bench.Report {
	for _, p := range r.Phases {
		if p.State == state {
			return p.Puts
		}
	}
	return &bench.Report{}
}

func (r *caughtUp) markdown() string {
	var fill, back []float64
	for _, round := range r.Rounds {
		fill, back = append(fill, round.FillSeconds), append(back, round.Seconds)
	}
	var b strings.Builder
	b.WriteString(r.Environment.markdown())
	fmt.Fprintf(&b, "\nIn each of %d rounds, one of three members of Coterie missed %.1f GB, written in %.0f s, and had them %.1f s after its start. "+
		"In each state %g puts/s were due at the leader. All numbers are medians of the rounds; the last column compares the p99 with that of the same round with all members up.\n\n",
		len(r.Rounds), float64(r.Bytes)/1e9, median(fill), median(back), r.Rate)
	b.WriteString("| state | puts | set aside | p50 | p99 | p99.9 | longest | p99 ÷ all up |\n|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, state := range []string{allUp, oneDown, catching} {
		m := func(of func(bench.Latency) float64) string {
			return millis(r.median(state, func(r *bench.Report) float64 { return of(r.Latency) }))
		}
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %s | %s | %s | %s | **%.2f** |\n", state,
			r.median(state, func(r *bench.Report) float64 { return float64(r.Succeeded) }),
			r.median(state, func(r *bench.Report) float64 { return float64(r.SetAside) }),
			m(func(l bench.Latency) float64 { return l.P50US }), m(p99OfLatency),
			m(func(l bench.Latency) float64 { return l.P999US }), m(func(l bench.Latency) float64 { return l.MaxUS }),
			r.times(state, func(r *bench.Report) float64 { return p99OfLatency(r.Latency) }))
	}
	if err := r.failures(); err != nil {
		fmt.Fprintf(&b, "\nNot to be trusted, because requests failed:\n\n```\n%v\n```\n", err)
	}
	return b.String()
}

func p99OfLatency(l bench.Latency) float64 { return l.P99US }

// failures is an error when puts failed, or were due and not sent.
func (r *caughtUp) failures() error {
	var errs []error
	for i, round := range r.Rounds {
		for _, p := range round.Phases {
			if n := p.Puts.Failed + p.Puts.Abandoned + unsent(p.Puts); n > 0 {
				errs = append(errs, fmt.Errorf("round %d, %s: %d puts failed, were not answered or not sent", i+1, p.State, n))
			}
		}
	}
	return errors.Join(errs...)
}

// unsent is how many puts were due and not sent. The load of a phase that ends with something else than its time is
// interrupted, and what was due while the last answers came is not counted.
func unsent(r *bench.Report) int64 {
	if !r.Interrupted {
		return r.Unsent
	}
	return max(0, r.Unsent-1-int64(r.Rate*r.Latency.MaxUS/1e6))
}
