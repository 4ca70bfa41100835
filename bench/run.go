package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Bounds of a plan. They keep a mistyped number from running for a week.
const (
	MaxClients  = 100_000
	MaxTotal    = 1_000_000_000
	MaxDuration = time.Hour
	MaxRate     = 10_000_000

	defaultGrace   = 5 * time.Second
	interruptGrace = time.Second // for requests under way when the user interrupts
	closeTimeout   = 10 * time.Second
	progressEvery  = 100 * time.Millisecond

	// After consecutive failures a client of a closed loop waits, from the first of these up to the
	// second, so that a server that is down is not also attacked.
	backoffMin = time.Millisecond
	backoffMax = 250 * time.Millisecond
)

// Plan says how much load, for how long.
type Plan struct {
	Clients  int
	Duration time.Duration // the measured part; it ends here even if Total is not reached
	Total    int64         // requests of the measured part; 0: as many as Duration allows
	WarmUp   time.Duration // the same load before, not measured
	Rate     float64       // requests per second in all (open loop); 0: each client waits for its answer (closed loop)
	Grace    time.Duration // how long requests under way at the end may still take; 0 means 5 s

	// StoodStill, if set, tells whether the machine stood still between two times. Requests that were due before the end of
	// such a time and answered after its beginning succeed, but their latency says nothing, and is set aside. It is asked
	// for those that took long, when all have been answered.
	StoodStill func(from, to time.Time) bool

	ServerPIDs []int          // processes whose CPU and memory belong to the server
	Progress   func(Progress) // called about ten times a second, never concurrently; may be nil
}

// Progress is the state of a run.
type Progress struct {
	Stage    string // "preparing", "warming up", "measuring", "draining"
	Elapsed  time.Duration
	Duration time.Duration // of the stage; 0: not known
	Done     int64
	Total    int64 // 0: not known
}

// Validate reports what is wrong with a plan.
func (p Plan) Validate() error {
	if err := validateClients(p.Clients); err != nil {
		return err
	}
	switch {
	case p.Duration <= 0 || p.Duration > MaxDuration:
		return fmt.Errorf("a duration of %v: must be more than 0 and at most %v", p.Duration, MaxDuration)
	case p.Total < 0 || p.Total > MaxTotal:
		return fmt.Errorf("%d requests: must be between 0 (no limit) and %d", p.Total, MaxTotal)
	case p.WarmUp < 0 || p.WarmUp > MaxDuration:
		return fmt.Errorf("a warm-up of %v: must be between 0 and %v", p.WarmUp, MaxDuration)
	case !(p.Rate >= 0 && p.Rate <= MaxRate):
		return fmt.Errorf("a rate of %g requests/s: must be between 0 (no fixed rate) and %d", p.Rate, MaxRate)
	case p.Grace < 0 || p.Grace > MaxDuration:
		return fmt.Errorf("a grace of %v: must be between 0 and %v", p.Grace, MaxDuration)
	}
	return nil
}

func validateClients(n int) error {
	if n < 1 || n > MaxClients {
		return fmt.Errorf("%d clients: must be between 1 and %d", n, MaxClients)
	}
	return nil
}

// Run prepares the load, warms up, measures and cleans up. When ctx ends during the measured part,
// Run returns the report of what was measured until then; earlier, it returns ctx's error.
// The error is about the run: requests that failed are in the report.
func Run(ctx context.Context, pool *Pool, load Load, plan Plan) (report *Report, err error) {
	if err := plan.Validate(); err != nil {
		return nil, err
	}
	if plan.Grace == 0 {
		plan.Grace = defaultGrace
	}
	if _, ok := load.(Starter); pool.light != nil && !ok {
		return nil, fmt.Errorf("the light client cannot put on the load %s", load.Name())
	}
	r := &run{load: load, plan: plan, conns: pool.Size(), processes: newProcessTable()}
	// The life of streams and requests: it outlasts ctx by a moment, so that what is under way when
	// the user interrupts can still end well.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	r.end = end
	context.AfterFunc(life, pool.abort)
	defer func() {
		end()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if closeErr := load.Close(closing); closeErr != nil && err == nil {
			report.CleanUpError = closeErr.Error()
		}
	}()

	if err := r.prepare(ctx, life, pool); err != nil {
		return nil, err
	}
	if plan.WarmUp > 0 {
		warm := plan
		warm.Duration, warm.Total = plan.WarmUp, 0
		if p := r.phase(ctx, life, "warming up", warm); p.abandoned > 0 || ctx.Err() != nil {
			return nil, fmt.Errorf("during the warm-up: %w", interruption(ctx, plan.Grace))
		}
	}
	return r.measure(ctx, life)
}

func interruption(ctx context.Context, grace time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("the server left requests unanswered for %v", grace)
}

// run is one call of Run.
type run struct {
	load      Load
	plan      Plan
	conns     int
	processes processTable
	clients   []Operation
	starts    []Start            // instead of clients, with the light client
	end       context.CancelFunc // ends what requests and streams live on
}

func (r *run) prepare(ctx, life context.Context, pool *Pool) error {
	defer r.report("preparing", plain{})()
	// Nothing of value is under way yet: an interrupt ends the preparation at once.
	keep := context.AfterFunc(ctx, r.end)
	err := r.load.Prepare(life, pool)
	if !keep() {
		return fmt.Errorf("during the preparation: %w", ctx.Err())
	}
	if err != nil {
		return err
	}
	starter, _ := r.load.(Starter)
	for i := range r.plan.Clients {
		if pool.light != nil {
			r.starts = append(r.starts, starter.Start(i))
		} else {
			r.clients = append(r.clients, r.load.Client(i))
		}
	}
	return nil
}

func (r *run) measure(ctx, life context.Context) (*Report, error) {
	before, err := r.processes.sampleAll(r.plan.ServerPIDs)
	if err != nil {
		return nil, err
	}
	clientBefore, clientErr := r.processes.self()
	observer, observes := r.load.(Observer)
	if observes {
		observer.Begin(time.Now())
	}

	p := r.phase(ctx, life, "measuring", r.plan)

	rep := newReport(r.load.Kinds(), p)
	rep.Load, rep.Conns = r.load.Name(), r.conns
	rep.Interrupted = ctx.Err() != nil
	if observes {
		events := r.drain(ctx, life, observer)
		rep.Events = &events
	}
	after, err := r.processes.sampleAll(r.plan.ServerPIDs)
	if err != nil {
		// The report of a load that has killed its server is worth having all the same.
		rep.ServerError = err.Error()
	} else {
		rep.Server = usages(before, after, rep.Succeeded)
	}
	if clientAfter, err := r.processes.self(); err == nil && clientErr == nil {
		u := usages([]processSample{clientBefore}, []processSample{clientAfter}, rep.Succeeded)[0]
		rep.Client = &u
	}
	return rep, nil
}

func (r *run) drain(ctx, life context.Context, o Observer) Events {
	defer r.report("draining", plain{})()
	dctx, cancel := context.WithTimeout(life, r.plan.Grace)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	return o.Drain(dctx)
}

// phase is what a part of a run came to.
type phase struct {
	plan      Plan
	start     time.Time
	end       time.Time // when the last request ended, or the phase, if none did
	recorder  *recorder
	unsent    int64
	abandoned int64 // requests still unanswered when the grace was over
}

// phase puts the load on for plan.Duration or plan.Total, and waits for every client. When clients
// do not come back within the grace it ends r's life, and with it the requests that they wait for.
func (r *run) phase(ctx, life context.Context, stage string, plan Plan) phase {
	p := phase{
		plan:     plan,
		recorder: newRecorder(len(r.load.Kinds()), plan.Clients, plan.Rate > 0, plan.StoodStill != nil),
		start:    time.Now(),
	}
	deadline := p.start.Add(plan.Duration)
	closed := &closedLoop{end: deadline, total: plan.Total}
	open := &openLoop{schedule: schedule{start: p.start, end: deadline, rate: plan.Rate, total: plan.Total}, sleep: sleepUntil}
	if r.starts != nil {
		open.sleep = sleepPrecisely // one goroutine waits for all clients
	}
	var pace pacer = closed
	if plan.Rate > 0 {
		pace = open
	}
	stopReport := r.report(stage, phaseState{p.recorder, plan})

	// The clients end when the pacer says so, when life ends, and are awaited below.
	var clients sync.WaitGroup
	abandoned := make([]int64, plan.Clients)
	for i, op := range r.clients {
		clients.Go(func() { abandoned[i] = drive(ctx, life, pace, op, p.recorder, i, plan.Rate == 0) })
	}
	if r.starts != nil {
		s := &starting{ctx: ctx, life: life, rec: p.recorder, over: &clients, abandoned: abandoned}
		if plan.Rate > 0 {
			clients.Go(func() { s.open(r.starts, open) })
		} else {
			s.closed(r.starts, closed)
		}
	}
	back := make(chan struct{})
	go func() { // ends with the clients
		clients.Wait()
		close(back)
	}()
	r.await(ctx, back, deadline)
	stopReport()

	if plan.StoodStill != nil {
		p.recorder.sort(plan.StoodStill)
	}
	done, last := p.recorder.ended()
	p.end = last
	if done == 0 {
		p.end = time.Now()
	}
	for _, n := range abandoned {
		p.abandoned += n
	}
	until := deadline
	if ctx.Err() != nil {
		until = p.end // what would have been due after an interrupt is nobody's fault
	}
	p.unsent = pace.unsent(until)
	return p
}

// await returns when back is closed. It ends the run's life when that takes too long.
func (r *run) await(ctx context.Context, back <-chan struct{}, deadline time.Time) {
	late := time.NewTimer(time.Until(deadline) + r.plan.Grace)
	defer late.Stop()
	select {
	case <-back:
		return
	case <-late.C:
	case <-ctx.Done():
		late.Reset(min(interruptGrace, r.plan.Grace))
		select {
		case <-back:
			return
		case <-late.C:
		}
	}
	r.end()
	<-back
}

// drive is one client: it sends what the pacer hands out until there is no more. It returns how many
// of its requests were cut off by the end of life.
func drive(ctx, life context.Context, pace pacer, op Operation, rec *recorder, client int, closed bool) (abandoned int64) {
	backoff := backoffMin
	for {
		due, ok := pace.next(ctx)
		if !ok {
			return 0
		}
		sent := due
		if !closed {
			sent = time.Now()
		}
		out, err := op(life, due)
		if out.Done.IsZero() {
			out.Done = time.Now()
		}
		if err == nil {
			rec.succeed(client, out.Kind, out.Done, out.Done.Sub(due), out.Done.Sub(sent))
			backoff = backoffMin
			continue
		}
		if life.Err() != nil {
			return 1
		}
		rec.fail(client, out.Done, err)
		if closed {
			if !sleepUntil(ctx, time.Now().Add(backoff)) {
				return 0
			}
			backoff = min(2*backoff, backoffMax)
		}
	}
}

// progressState is what a stage can tell of how far it is.
type progressState interface{ fill(*Progress) }

type plain struct{}

func (plain) fill(*Progress) {}

type phaseState struct {
	recorder *recorder
	plan     Plan
}

func (s phaseState) fill(p *Progress) {
	p.Done, _ = s.recorder.ended()
	p.Duration, p.Total = s.plan.Duration, s.plan.Total
}

// report keeps telling plan.Progress about a stage until the function that it returns is called,
// which waits until the last call is over.
func (r *run) report(stage string, state progressState) (stop func()) {
	if r.plan.Progress == nil {
		return func() {}
	}
	start := time.Now()
	tell := func() {
		p := Progress{Stage: stage, Elapsed: time.Since(start)}
		state.fill(&p)
		r.plan.Progress(p)
	}
	quit := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() { // ended and awaited by stop
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tell()
			case <-quit:
				tell()
				return
			}
		}
	})
	return func() {
		close(quit)
		reporter.Wait()
	}
}

// mergeAll sums up the latencies of all kinds.
func mergeAll(kinds int, of func(int) *hdrhistogram.Histogram) *hdrhistogram.Histogram {
	sum := newHistogram()
	for k := range kinds {
		sum.Merge(of(k))
	}
	return sum
}

// ErrNothingDone is returned by Report.Err for a run in which no request succeeded.
var ErrNothingDone = errors.New("no request succeeded")
