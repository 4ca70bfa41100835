package main

import (
	"context"
	"errors"
	"time"

	"github.com/coteriedb/coterie/bench"
)

const pauseRevisions = 500_000

var worstOverMedian = quantity{"longest meanwhile ÷ p50 without", timesUnit}

// pausesPart is what puts notice of a defragmentation and of a physical compaction, which run one after the other. Each
// server runs alone.
func pausesPart() part {
	const row = "defrag and compaction of 500 k revisions"
	p := part{name: "pauses", light: true, names: []string{row}}
	p.flags = []string{"--quota-backend-bytes=8589934592"}
	p.required = map[cell]requirement{{row, worstOverMedian}: {most: 3, absolute: true}}
	p.round = func(ctx context.Context, m *measuring, number int) error {
		return m.withEach(ctx, number, serverOptions{members: 1, flags: p.flags}, func(v *server, side int) error {
			load, err := put(false)
			if err != nil {
				return err
			}
			fill := bench.Plan{Clients: 1000, Total: pauseRevisions, Duration: bench.MaxDuration}
			if _, err := m.load(ctx, v, "puts of 500 k revisions", side, load, 100, fill); err != nil {
				return err
			}
			if err := v.settle(ctx); err != nil {
				return err
			}
			without, err := v.steadyPuts(ctx, m.settings, nil)
			if err != nil {
				return err
			}
			var took time.Duration
			meanwhile, err := v.steadyPuts(ctx, m.settings, func(ctx context.Context) error {
				began := time.Now()
				err := errors.Join(v.compact(ctx), v.defragment(ctx))
				took = time.Since(began)
				return err
			})
			if err != nil {
				return err
			}
			m.table.fail(row, side, without.Failed+without.Abandoned+meanwhile.Failed+meanwhile.Abandoned)
			m.table.add(row, quantity{"p50 without", microseconds}, side, tenths(without.Latency.P50US))
			m.table.add(row, quantity{"longest without", microseconds}, side, tenths(without.Latency.MaxUS))
			m.table.add(row, quantity{"p50 meanwhile", microseconds}, side, tenths(meanwhile.Latency.P50US))
			m.table.add(row, quantity{"p99 meanwhile", microseconds}, side, tenths(meanwhile.Latency.P99US))
			m.table.add(row, quantity{"longest meanwhile", microseconds}, side, tenths(meanwhile.Latency.MaxUS))
			m.table.add(row, worstOverMedian, side, hundredths(meanwhile.Latency.MaxUS/without.Latency.P50US))
			m.table.add(row, quantity{"time until both are done", secondsUnit}, side, hundredths(took.Seconds()))
			m.progress.step("%-34s %-8s longest %s without, %s meanwhile", row, v.side.name, millis(without.Latency.MaxUS), millis(meanwhile.Latency.MaxUS))
			return nil
		})
	}
	return p
}
