package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/coteriedb/coterie/bench"
)

// comparison runs the rounds.
type comparison struct {
	settings settings
	rows     []row
	sides    [2]side
	work     string
	progress io.Writer
}

// rounds runs every round: both servers start fresh, and every row runs against one and at once
// against the other. Which is first alternates from row to row and from round to round, so that what
// else happens on the machine meets both alike. The server that is not measured idles.
func (c comparison) rounds(ctx context.Context, env environment) (*result, error) {
	res := newResult(c.settings, c.rows)
	res.Environment = env
	for round := range c.settings.rounds {
		if err := c.round(ctx, round, res); err != nil {
			return nil, fmt.Errorf("round %d: %w", round+1, err)
		}
	}
	return res, nil
}

func (c comparison) round(ctx context.Context, round int, res *result) (failure error) {
	var servers [2]*server
	var filled [2]bool
	for i, s := range c.sides {
		v, err := start(ctx, s, c.work, serverOptions{members: c.settings.members})
		if err != nil {
			return err
		}
		defer func() { failure = errors.Join(failure, v.stop()) }()
		servers[i] = v
	}
	for i, r := range c.rows {
		for turn := range servers {
			which := (round + i + turn) % len(servers)
			v := servers[which]
			s, err := c.measure(ctx, v, r, filled[which])
			if err != nil {
				return fmt.Errorf("%s, %s: %w\n%s", v.side.name, r.name(), err, v.logTail())
			}
			filled[which] = filled[which] || r.reads
			res.Rows[i].samples(which).add(s)
			fmt.Fprintf(c.progress, "round %d of %d  %-26s %-8s %8.0f requests/s %8.1f µs CPU/request\n",
				round+1, c.settings.rounds, r.name(), v.side.name, s.PerSecond, s.ServerCPUUS)
		}
	}
	return nil
}

// measure runs one row. The key space is filled by the first row that reads.
func (c comparison) measure(ctx context.Context, v *server, r row, filled bool) (sample, error) {
	load, err := r.make(filled)
	if err != nil {
		return sample{}, err
	}
	pool, err := bench.Dial(ctx, bench.Target{Endpoints: v.endpoints(), Conns: r.conns})
	if err != nil {
		return sample{}, err
	}
	defer pool.Close()
	report, err := bench.Run(ctx, pool, load, bench.Plan{
		Clients: r.clients, Duration: c.settings.duration, WarmUp: c.settings.warmUp, ServerPIDs: v.pids(),
	})
	switch {
	case err != nil:
		return sample{}, err
	case report.Interrupted:
		return sample{}, context.Cause(ctx)
	case report.Err() != nil:
		return sample{}, report.Err()
	case report.ServerError != "":
		return sample{}, errors.New(report.ServerError)
	}
	return newSample(report), nil
}
