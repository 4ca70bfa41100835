package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/coteriedb/coterie/bench"
)

const (
	fillValueBytes = 32 << 10
	fillClients    = 16
	putClients     = 64
	putConns       = 8
	// catchUpTimeout is far beyond what any disk takes for what may be written.
	catchUpTimeout = 30 * time.Minute
)

// catchUp measures a cluster's puts while a member that was down gets what it has missed, which is more than the log is
// kept for. The puts are due at a fixed rate and go to the leader.
type catchUp struct {
	settings settings
	side     side
	work     string
	progress io.Writer
}

// caughtUp is what a catch-up measured; as JSON it lies beside the page.
type caughtUp struct {
	Name        string      `json:"name"`
	Environment environment `json:"environment"`
	Bytes       int64       `json:"bytes"`            // of values that the member had missed
	FillSeconds float64     `json:"fill_seconds"`     // that it took to write them
	Seconds     float64     `json:"catch_up_seconds"` // from the start of the member's process until it had applied all
	Rate        float64     `json:"rate"`
	Phases      []phase     `json:"phases"`
}

// phase is the load of puts in one of the states of the cluster.
type phase struct {
	State string        `json:"state"`
	Puts  *bench.Report `json:"puts"`
}

func (c catchUp) say(format string, args ...any) { fmt.Fprintf(c.progress, format+"\n", args...) }

func (c catchUp) run(ctx context.Context, env environment) (res *caughtUp, failure error) {
	count := max(1, int64(c.settings.gigabytes*1e9/fillValueBytes))
	res = &caughtUp{Name: c.settings.section().name, Environment: env, Bytes: count * fillValueBytes, Rate: c.settings.rate}
	quota := fmt.Sprintf("--quota-backend-bytes=%d", 4*res.Bytes+4<<30)
	v, err := start(ctx, c.side, c.work, 3, quota)
	if err != nil {
		return nil, err
	}
	defer func() { failure = errors.Join(failure, v.stop()) }()

	late := v.members[2]
	if err := late.end(); err != nil {
		return nil, err
	}
	c.say("writing %d values of %d bytes, with one of three members down", count, fillValueBytes)
	if res.FillSeconds, err = c.fill(ctx, v, count); err != nil {
		return nil, fmt.Errorf("writing what the member will have missed: %w\n%s", err, v.logTail())
	}
	for _, step := range []struct {
		state string
		until func(context.Context) error // nil: the settings' duration
	}{
		{"one of three members down", nil},
		{"it catches up", func(ctx context.Context) (err error) {
			res.Seconds, err = c.bringBack(ctx, v, late)
			return err
		}},
		{"all members up", nil},
	} {
		report, err := c.puts(ctx, v, step.until)
		if err == nil {
			err = ctx.Err() // an interrupt ends a load as if that were its end
		}
		if err != nil {
			return nil, fmt.Errorf("puts while %s: %w\n%s", step.state, err, v.logTail())
		}
		res.Phases = append(res.Phases, phase{State: step.state, Puts: report})
		c.say("%-28s p50 %s  p99 %s", step.state, millis(report.Latency.P50US), millis(report.Latency.P99US))
	}
	return res, nil
}

// fill writes so many values, each under a key of its own.
func (c catchUp) fill(ctx context.Context, v *server, count int64) (seconds float64, err error) {
	load, err := bench.NewPut(bench.Data{Prefix: "fill/", Keys: int(count), KeySize: 24, ValueSize: fillValueBytes, Sequential: true, Seed: 2})
	if err != nil {
		return 0, err
	}
	report, err := c.load(ctx, v, load, bench.Plan{Clients: fillClients, Total: count, Duration: bench.MaxDuration})
	if err != nil {
		return 0, err
	}
	if report.Succeeded < count {
		return 0, fmt.Errorf("only %d of %d values were written", report.Succeeded, count)
	}
	return report.Seconds, nil
}

// puts measures puts at the fixed rate: for as long as until takes, or for the settings' duration.
func (c catchUp) puts(ctx context.Context, v *server, until func(context.Context) error) (*bench.Report, error) {
	load, err := bench.NewPut(keys())
	if err != nil {
		return nil, err
	}
	plan := bench.Plan{Clients: putClients, Rate: c.settings.rate, Duration: c.settings.duration, WarmUp: c.settings.warmUp}
	if until == nil {
		return c.load(ctx, v, load, plan)
	}
	plan.Duration, plan.WarmUp = catchUpTimeout, 0
	measured, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { // ends with until, which measured bounds; awaited below
		defer stop()
		ended <- until(measured)
	}()
	report, err := c.load(measured, v, load, plan)
	stop()
	return report, errors.Join(err, <-ended)
}

func (c catchUp) load(ctx context.Context, v *server, load bench.Load, plan bench.Plan) (*bench.Report, error) {
	pool, err := bench.Dial(ctx, bench.Target{Endpoints: []string{v.members[0].endpoint}, Conns: putConns})
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	report, err := bench.Run(ctx, pool, load, plan)
	if err != nil {
		return nil, err
	}
	return report, report.Err()
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

func (r *caughtUp) markdown() string {
	var b strings.Builder
	b.WriteString(r.Environment.markdown())
	fmt.Fprintf(&b, "\nOne of three members of Coterie missed %.1f GB, written in %.0f s. It had them %.1f s after its start. "+
		"Meanwhile %g puts/s were due at the leader:\n\n", float64(r.Bytes)/1e9, r.FillSeconds, r.Seconds, r.Rate)
	b.WriteString("| state | puts | p50 | p99 | p99.9 | longest |\n|---|--:|--:|--:|--:|--:|\n")
	for _, p := range r.Phases {
		l := p.Puts.Latency
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s |\n", p.State, p.Puts.Succeeded,
			millis(l.P50US), millis(l.P99US), millis(l.P999US), millis(l.MaxUS))
	}
	if err := r.failures(); err != nil {
		fmt.Fprintf(&b, "\nNot to be trusted, because requests failed:\n\n```\n%v\n```\n", err)
	}
	return b.String()
}

// failures is an error when puts failed, or were due and not sent.
func (r *caughtUp) failures() error {
	var errs []error
	for _, p := range r.Phases {
		if n := p.Puts.Failed + p.Puts.Abandoned + unsent(p.Puts); n > 0 {
			errs = append(errs, fmt.Errorf("%s: %d puts failed, were not answered or not sent", p.State, n))
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
