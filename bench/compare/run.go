package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"

	"github.com/coteriedb/coterie/bench"
)

// comparison is what all parts share.
type comparison struct {
	settings settings
	sides    [sideCount]side
	work     string
	progress *progress
}

// measured is a part with what was measured.
type measured struct {
	section section
	found   findings
}

// run measures the chosen parts one after the other.
func (c comparison) run(ctx context.Context, env environment, each func(measured) error) error {
	chosen, err := c.settings.chosen()
	if err != nil {
		return err
	}
	pattern := regexp.MustCompile(c.settings.rows) // chosen has compiled it
	for _, p := range chosen {
		c.progress.part(p.name)
		if p.name == catchUpPart {
			found, err := catchUp{c}.run(ctx, env)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			if err := each(measured{newSection(p.name), found}); err != nil {
				return err
			}
			continue
		}
		t := &table{
			Name: p.name, Environment: env, Client: clientName(p.light), Flags: p.flags,
			Rounds: c.settings.rounds, Seconds: c.settings.duration.Seconds(), required: p.required,
		}
		m := &measuring{comparison: c, part: p, rows: pattern, table: t}
		for n := range c.settings.rounds {
			c.progress.round(n+1, c.settings.rounds)
			if err := p.round(ctx, m, n); err != nil {
				return fmt.Errorf("%s, round %d: %w", p.name, n+1, err)
			}
		}
		if err := each(measured{newSection(p.name), t}); err != nil {
			return err
		}
	}
	return nil
}

func clientName(light bool) string {
	if light {
		return "the light one"
	}
	return "grpc-go's"
}

// chosen are the parts that --parts names and that have a row that --rows matches.
func (s settings) chosen() (out []part, err error) {
	pattern, err := regexp.Compile(s.rows)
	if err != nil {
		return nil, fmt.Errorf("--rows: %w", err)
	}
	all := append(parts(), part{name: catchUpPart, names: []string{""}})
	for _, name := range s.parts {
		if !slices.ContainsFunc(all, func(p part) bool { return p.name == name }) {
			return nil, fmt.Errorf("--parts: no part is called %q", name)
		}
	}
	for _, p := range all {
		wanted := slices.ContainsFunc(p.names, func(row string) bool { return pattern.MatchString(p.name + ": " + row) })
		if slices.Contains(s.parts, p.name) && wanted {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("--rows: none of %q matches %q", s.parts, s.rows)
	}
	return out, nil
}

// comparedParts are the names of the parts that compare the servers.
func comparedParts() (names []string) {
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// steadyPuts measures puts at the settings' fixed rate: for as long as until takes, or for the settings' duration, but not
// less than a second. They go to the first member.
func (v *server) steadyPuts(ctx context.Context, s settings, until func(context.Context) error) (*bench.Report, error) {
	load, err := put(false)
	if err != nil {
		return nil, err
	}
	target := v.members[0].target()
	target.Conns, target.Light = steadyConns, true
	pool, err := bench.Dial(ctx, target)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	plan := bench.Plan{Clients: steadyClients, Rate: s.rate, Duration: s.duration, WarmUp: s.warmUp, StoodStill: s.stills.told}
	if until == nil {
		return bench.Run(ctx, pool, load, plan)
	}
	plan.Duration, plan.WarmUp = steadyTimeout, 0
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { // ends with until, which running bounds; awaited below
		defer stop()
		ended <- until(running)
	}()
	report, err := bench.Run(running, pool, load, plan)
	stop()
	if untilErr := <-ended; untilErr != nil {
		return nil, untilErr
	}
	return report, err
}
