package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/coteriedb/coterie/bench"
)

const leaseTTL = time.Minute

// part is a part of the comparison, with a section of the page for itself.
type part struct {
	name     string
	light    bool
	required map[cell]requirement
	// names are what --rows chooses from, and steps how many of them a round reports as done, for each side.
	names []string
	// round measures everything once and adds it to the table.
	round func(ctx context.Context, m *measuring, number int) error
	flags []string // of the servers
}

// measuring is a run of a part.
type measuring struct {
	comparison
	part  part
	rows  *regexp.Regexp
	table *table
}

func (m *measuring) wants(row string) bool { return m.rows.MatchString(m.part.name + ": " + row) }

// order is the order of the sides in a round: which is first alternates, so that what else happens on the machine meets
// both alike.
func order(n int) [sideCount]int { return [...]int{n % sideCount, (n + 1) % sideCount} }

// parts are all parts, in the order in which they are measured.
func parts() []part {
	return []part{
		loads("one-node", true, serverOptions{members: 1}, oneNodeRows()),
		loads("three-members", true, serverOptions{members: 3}, threeMembersRows()),
		loads("tls", true, serverOptions{members: 1, tls: true}, relaxed(mainRows(), 0.2)),
		loads("grpc-client", false, serverOptions{members: 1}, free(mainRows())),
		watchPart(),
		ratePart(),
		keysPart(),
		pausesPart(),
	}
}

// loads is a part of loads that are put on both servers in turn. The server that is not measured idles.
func loads(name string, light bool, o serverOptions, rows []row) part {
	p := part{name: name, light: light, required: required(rows)}
	for _, r := range rows {
		p.names = append(p.names, r.name())
	}
	p.round = func(ctx context.Context, m *measuring, number int) error {
		return m.withBoth(ctx, o, func(servers [sideCount]*server) error {
			var filled [sideCount]bool
			for i, r := range rows {
				if !m.wants(r.name()) {
					continue
				}
				for _, side := range order(number + i) {
					load, err := r.make(filled[side])
					if err != nil {
						return err
					}
					report, err := m.load(ctx, servers[side], r.name(), side, load, r.conns, bench.Plan{Clients: r.clients})
					if err != nil {
						return err
					}
					filled[side] = filled[side] || r.reads
					m.addLoad(r.name(), side, report)
				}
			}
			return nil
		})
	}
	return p
}

// withBoth runs something while both servers run, fresh.
func (m *measuring) withBoth(ctx context.Context, o serverOptions, do func([sideCount]*server) error) (failure error) {
	var servers [sideCount]*server
	for i, s := range m.sides {
		v, err := start(ctx, s, m.work, o)
		if err != nil {
			return err
		}
		defer func() { failure = errors.Join(failure, v.stop()) }()
		servers[i] = v
	}
	return do(servers)
}

// withEach runs something for one server after the other, each fresh and alone.
func (m *measuring) withEach(ctx context.Context, number int, o serverOptions, do func(v *server, side int) error) error {
	for _, side := range order(number) {
		v, err := start(ctx, m.sides[side], m.work, o)
		if err != nil {
			return err
		}
		if err = do(v, side); err != nil {
			err = fmt.Errorf("%s: %w\n%s", v.side.name, err, v.logTail())
		}
		if err := errors.Join(err, v.stop()); err != nil {
			return err
		}
	}
	return nil
}

// load puts a load on a server and returns what came of it. The plan's duration and warm-up are the settings' if it has none.
func (m *measuring) load(ctx context.Context, v *server, name string, side int, load bench.Load, conns int, plan bench.Plan) (*bench.Report, error) {
	if plan.Duration == 0 {
		plan.Duration, plan.WarmUp = m.settings.duration, m.settings.warmUp
	}
	plan.ServerPIDs = v.pids()
	report, err := v.put(ctx, load, m.part.light, conns, plan)
	if err != nil {
		return nil, fmt.Errorf("%s, %s: %w\n%s", v.side.name, name, err, v.logTail())
	}
	m.table.fail(name, side, report.Failed+report.Abandoned)
	m.progress.step("%-34s %-8s %8.0f requests/s %8.1f µs CPU/request", name, v.side.name, report.PerSecond, report.ServerCPUPerRequest())
	return report, nil
}

// put runs a load against the server; the report is complete.
func (v *server) put(ctx context.Context, load bench.Load, light bool, conns int, plan bench.Plan) (*bench.Report, error) {
	target := v.target()
	target.Conns, target.Light = conns, light
	pool, err := bench.Dial(ctx, target)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	report, err := bench.Run(ctx, pool, load, plan)
	switch {
	case err != nil:
		return nil, err
	case report.Interrupted:
		return nil, context.Cause(ctx)
	case report.Err() != nil:
		return nil, report.Err()
	case report.ServerError != "":
		return nil, errors.New(report.ServerError)
	}
	return report, nil
}

func (m *measuring) addLoad(row string, side int, r *bench.Report) {
	m.table.add(row, requestsPerSecond, side, tenths(r.PerSecond))
	m.table.add(row, p50Latency, side, tenths(r.Latency.P50US))
	m.table.add(row, p99Latency, side, tenths(r.Latency.P99US))
	m.table.add(row, cpuPerRequest, side, tenths(r.ServerCPUPerRequest()))
	if r.Client != nil {
		m.table.add(row, generatorCPU, side, tenths(r.Client.CPUPerRequestUS))
	}
}
