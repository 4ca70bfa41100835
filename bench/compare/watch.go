package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/coteriedb/coterie/bench"
)

const (
	fanoutWatchers = 1000
	fanoutClients  = 4 // puts whose events are awaited at a time
	idleWatchers   = 100_000
)

var withIdle = quantity{"puts/s with ÷ without", timesUnit}

// watchPart is what watchers cost: many of one key, and very many of other keys.
func watchPart() part {
	const (
		lightRow = "fan-out, light client"
		grpcRow  = "fan-out, grpc-go's client"
	)
	idleRow := fmt.Sprintf("put, 100, beside %d idle watchers", idleWatchers)
	p := part{name: "watch", light: true, names: []string{lightRow, grpcRow, idleRow}}
	p.required = map[cell]requirement{
		{lightRow, eventsPerSecond}: atLeast(4),
		{lightRow, cpuPerEvent}:     atMost(0.2),
		{grpcRow, eventsPerSecond}:  atLeast(1.5),
		{idleRow, withIdle}:         {least: 0.9, absolute: true},
	}
	p.round = func(ctx context.Context, m *measuring, number int) error {
		return m.withBoth(ctx, serverOptions{members: 1}, func(servers [sideCount]*server) error {
			for i, row := range p.names {
				for _, side := range order(number + i) {
					var err error
					if row == idleRow {
						err = m.idle(ctx, servers[side], row, side)
					} else {
						err = m.fanout(ctx, servers[side], row, side, row == lightRow)
					}
					if err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return p
}

func (m *measuring) fanout(ctx context.Context, v *server, row string, side int, light bool) error {
	if !m.wants(row) {
		return nil
	}
	data := keys()
	data.Keys = 1
	load, err := bench.NewWatchFanout(data, bench.FanoutOptions{Watchers: fanoutWatchers, Await: true})
	if err != nil {
		return err
	}
	plan := bench.Plan{Clients: fanoutClients, Duration: m.settings.duration, WarmUp: m.settings.warmUp, ServerPIDs: v.pids()}
	r, err := v.put(ctx, load, light, 100, plan)
	if err != nil {
		return fmt.Errorf("%s: %w", row, err)
	}
	m.table.fail(row, side, r.Failed+r.Abandoned+r.Events.Expected-r.Events.Delivered)
	cpu := 0.0
	if r.Events.Delivered > 0 {
		cpu = r.ServerCPUPerRequest() * float64(r.Succeeded) / float64(r.Events.Delivered)
	}
	m.table.add(row, eventsPerSecond, side, tenths(r.Events.PerSecond))
	m.table.add(row, cpuPerEvent, side, hundredths(cpu))
	m.table.add(row, quantity{"p99 of an event", microseconds}, side, tenths(r.Events.Latency.P99US))
	m.progress.step("%-34s %-8s %8.0f events/s %8.2f µs CPU/event", row, v.side.name, r.Events.PerSecond, cpu)
	return nil
}

// idleTurns are the loads of idle: 0 without the watchers, 1 with them. A server gets slower or faster with what it has been
// put, and compacts its tables every few loads: so both come early and late, at no fixed interval.
var idleTurns = [...]int{0, 1, 1, 0, 1, 0, 0, 1}

// idle compares puts without and with idle watchers: the means of four loads each.
func (m *measuring) idle(ctx context.Context, v *server, row string, side int) error {
	if !m.wants(row) {
		return nil
	}
	var rates [2]float64
	for _, with := range idleTurns {
		puts, err1 := bench.NewPut(keys())
		var load bench.Load = puts
		var err2 error
		if with == 1 {
			load, err2 = bench.NewIdleWatchers(puts, idleWatchers)
		}
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		r, err := m.load(ctx, v, row, side, load, 100, bench.Plan{Clients: 100})
		if err != nil {
			return err
		}
		rates[with] += 2 * r.PerSecond / float64(len(idleTurns))
	}
	m.table.add(row, quantity{"puts/s without them", perSecondUnit}, side, tenths(rates[0]))
	m.table.add(row, quantity{"puts/s with them", perSecondUnit}, side, tenths(rates[1]))
	m.table.add(row, withIdle, side, hundredths(rates[1]/rates[0]))
	return nil
}
