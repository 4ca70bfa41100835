package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coteriedb/coterie/bench"
)

// profileSeconds is how long each profile takes.
const profileSeconds = 10

// profiles records what Coterie, a single server, does with its CPU time and allocates under each of the standard loads.
func (c comparison) profiles(ctx context.Context) (failure error) {
	if err := os.MkdirAll(c.settings.profile, 0o755); err != nil {
		return err
	}
	v, err := start(ctx, c.sides[coterieSide], c.work, serverOptions{members: 1, flags: []string{"--enable-pprof"}})
	if err != nil {
		return err
	}
	defer func() { failure = errors.Join(failure, v.stop()) }()
	c.progress.part("profile")
	filled := false
	for _, r := range append(mainRows(), fanoutRow()) {
		load, err := r.make(filled)
		if err != nil {
			return err
		}
		filled = filled || r.reads
		if err := c.profileLoad(ctx, v, r, load); err != nil {
			return fmt.Errorf("%s: %w\n%s", r.name(), err, v.logTail())
		}
	}
	return nil
}

func fanoutRow() row {
	data := keys()
	data.Keys = 1
	return row{load: "watch fan-out", clients: fanoutClients, conns: 100, make: func(bool) (bench.Load, error) {
		return bench.NewWatchFanout(data, bench.FanoutOptions{Watchers: fanoutWatchers, Await: true})
	}}
}

// profileLoad records one profile after the other while the load is on.
func (c comparison) profileLoad(ctx context.Context, v *server, r row, load bench.Load) error {
	running, stop := context.WithCancel(ctx)
	defer stop()
	target := v.target()
	target.Conns, target.Light = r.conns, true
	pool, err := bench.Dial(ctx, target)
	if err != nil {
		return err
	}
	defer pool.Close()
	type ending struct {
		report *bench.Report
		err    error
	}
	measuring, ended := make(chan struct{}), make(chan ending, 1)
	plan := bench.Plan{Clients: r.clients, Duration: bench.MaxDuration, WarmUp: time.Second, ServerPIDs: v.pids()}
	plan.Progress = func(p bench.Progress) { // the first call of that stage begins the profiles
		if p.Stage == "measuring" {
			select {
			case <-measuring:
			default:
				close(measuring)
			}
		}
	}
	go func() { // ends with running; awaited below
		report, err := bench.Run(running, pool, load, plan)
		ended <- ending{report, err}
	}()
	select {
	case <-measuring:
	case e := <-ended:
		return e.err
	}
	name := strings.NewReplacer(", ", "-", " ", "-").Replace(r.name())
	for _, kind := range []struct{ path, suffix string }{{"profile", "cpu"}, {"allocs", "allocs"}} {
		url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", v.members[0].address, kind.path, profileSeconds)
		file := filepath.Join(c.settings.profile, name+"."+kind.suffix+".pprof")
		if err := download(ctx, url, file); err != nil {
			return err
		}
		c.progress.step("%s", file)
	}
	stop()
	e := <-ended
	if e.err != nil {
		return e.err
	}
	c.progress.step("%-34s %8.0f requests/s %8.1f µs CPU/request, profiles included", r.name(), e.report.PerSecond, e.report.ServerCPUPerRequest())
	return nil
}

func download(ctx context.Context, url, file string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*profileSeconds*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %.200s", url, resp.Status, body)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, body, 0o644)
}
