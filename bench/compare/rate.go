package main

import (
	"context"
	"time"

	"github.com/coteriedb/coterie/bench"
)

// endOfLoad is how long before the end of a load requests may be due and not be sent any more: nobody waits for them.
const endOfLoad = 10 * time.Millisecond

// ratePart compares latencies at one rate of puts: half of what saturates etcd, which is measured before, in every round.
func ratePart() part {
	const row = "put at half of etcd's rate"
	p := part{name: "rate", light: true, names: []string{row}}
	p.required = map[cell]requirement{{row, p99Latency}: atMost(1)}
	p.round = func(ctx context.Context, m *measuring, number int) error {
		return m.withBoth(ctx, serverOptions{members: 1}, func(servers [sideCount]*server) error {
			load, err := put(false)
			if err != nil {
				return err
			}
			full, err := m.load(ctx, servers[etcdSide], "put", etcdSide, load, 100, bench.Plan{Clients: 1000})
			if err != nil {
				return err
			}
			rate := float64(int(full.PerSecond / 2))
			for _, side := range order(number) {
				if load, err = put(false); err != nil {
					return err
				}
				r, err := m.load(ctx, servers[side], row, side, load, 100, bench.Plan{
					Clients: 1000, Rate: rate, Duration: 2 * m.settings.duration, WarmUp: m.settings.warmUp, StoodStill: m.settings.stills.told,
				})
				if err != nil {
					return err
				}
				m.table.fail(row, side, max(0, r.Unsent-int64(rate*endOfLoad.Seconds())))
				m.table.add(row, quantity{"puts/s due", perSecondUnit}, side, rate)
				m.table.add(row, p50Latency, side, tenths(r.Latency.P50US))
				m.table.add(row, p99Latency, side, tenths(r.Latency.P99US))
				m.table.add(row, quantity{"p99.9", microseconds}, side, tenths(r.Latency.P999US))
				m.table.add(row, cpuPerRequest, side, tenths(r.ServerCPUPerRequest()))
			}
			return nil
		})
	}
	return p
}
