package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (-rewrite accepts it):\n%s", path, got)
	}
}

func TestReportTable(t *testing.T) {
	latency := Latency{MeanUS: 700.4, P50US: 512.2, P90US: 1034, P99US: 20480, P999US: 310_000, MaxUS: 2_500_000}
	usage := Usage{PID: 77, Command: "server", CPUSeconds: 1.5, CPUPerRequestUS: 12.34, ResidentBytes: 100 << 20, ResidentMaxBytes: 3 << 29}
	reports := map[string]Report{
		"closed.txt": {
			Load: "mixed", Clients: 1000, Conns: 1, Seconds: 10.004, Succeeded: 121_555, PerSecond: 12_150.6,
			Latency:    latency,
			Operations: []Operated{{Kind: "range", Latency: latency}, {Kind: "put", Latency: latency}},
			Server:     []Usage{usage, usage}, Client: &usage,
		},
		"open.txt": {
			Load: "watch-fanout", Clients: 1, Conns: 10, Rate: 50, Seconds: 2, Succeeded: 90, Failed: 4, Unsent: 6, Abandoned: 1, PerSecond: 45,
			Errors:      []ErrorCount{{"Unavailable", 3, "etcdserver: no leader"}, {"WrongAnswer", 1, "wrong answer: none"}},
			Latency:     latency,
			Service:     &latency,
			Events:      &Events{Watchers: 2, Expected: 180, Delivered: 179, PerSecond: 89.5, Latency: latency, Errors: []ErrorCount{{"Internal", 1, "broken"}}},
			ServerError: "process 77 has ended", CleanUpError: "revoking lease 1: gone", Interrupted: true,
		},
	}
	for name, r := range reports {
		var b bytes.Buffer
		if err := r.WriteTable(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.Bytes())
	}
}

func TestLatencyPercentiles(t *testing.T) {
	r := newRecorder(1, 100, false, false)
	for i := range 1000 { // 1 ms, 2 ms, ... 1 s, spread over the shards
		r.succeed(i, 0, time.Now(), time.Duration(i+1)*time.Millisecond, 0)
	}
	l := newLatency(r.merged(0))
	for name, c := range map[string]struct {
		got  float64
		want time.Duration
	}{
		"p50": {l.P50US, 500 * time.Millisecond}, "p90": {l.P90US, 900 * time.Millisecond}, "p99": {l.P99US, 990 * time.Millisecond},
		"p99.9": {l.P999US, 999 * time.Millisecond}, "max": {l.MaxUS, time.Second}, "mean": {l.MeanUS, 500500 * time.Microsecond},
	} {
		if !close3(c.got, c.want) {
			t.Errorf("%s is %.0f µs, want %v", name, c.got, c.want)
		}
	}
	if done, _ := r.ended(); done != 1000 {
		t.Errorf("%d ended", done)
	}
}

func TestLatencyOutsideTheHistogramIsClamped(t *testing.T) {
	r := newRecorder(1, 1, false, false)
	r.succeed(0, 0, time.Now(), -time.Second, 0)
	r.succeed(0, 0, time.Now(), 1000*time.Hour, 0)
	h := r.merged(0)
	if h.TotalCount() != 2 || h.Max() < int64(histogramMax) {
		t.Errorf("%d values, at most %v", h.TotalCount(), time.Duration(h.Max()))
	}
}

func TestErrorCode(t *testing.T) {
	for want, err := range map[string]error{
		"Unavailable":      fmt.Errorf("put: %w", status.Error(codes.Unavailable, "gone")),
		"Canceled":         fmt.Errorf("put: %w", context.Canceled),
		"DeadlineExceeded": context.DeadlineExceeded,
		"WrongAnswer":      fmt.Errorf("%w: none", errWrongAnswer),
		"InvalidArgument":  rpctypes.ErrGRPCEmptyKey,
		"Unknown":          errors.New("something"),
	} {
		if got := errorCode(err); got != want {
			t.Errorf("%v is %s, want %s", err, got, want)
		}
	}
}

func TestProcessTable(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	table := processTable{fstest.MapFS{
		"12/stat":   file("12 (a (b) c) S 1 12 12 0 -1 4194560 90 0 0 0 250 50 7 7 20 0 9 0 100 1000 10\n"),
		"12/status": file("Name:\ta\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t9\n"),
		"13/stat":   file("13 (gone) Z 1 13 13 0 -1 4194560 90 0 0 0 250 50 7 7 20 0 9 0 100 1000 10\n"),
		"13/status": file("Name:\tgone\nState:\tZ (zombie)\n"),
		"14/stat":   file("14 (cut"),
	}}
	got, err := table.sample(12)
	want := processSample{pid: 12, command: "a (b) c", cpu: 3 * time.Second, resident: 1 << 20, residentMax: 2 << 20}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, pid := range []int{13, 14, 15} {
		if _, err := table.sampleAll([]int{12, pid}); err == nil {
			t.Errorf("process %d was sampled", pid)
		}
	}
	later := got
	later.cpu += 2 * time.Second
	if u := usages([]processSample{got}, []processSample{later}, 1000); u[0].CPUSeconds != 2 || u[0].CPUPerRequestUS != 2000 {
		t.Errorf("%+v", u)
	}
}

func TestRequestsThatWaitedForTheMachineAreSetAside(t *testing.T) {
	r := newRecorder(1, 1, true, true)
	begin := time.Now()
	for i := range 100 {
		took := time.Millisecond
		if i%10 == 0 {
			took = 40 * time.Millisecond
		}
		r.succeed(0, 0, begin.Add(time.Duration(i)*time.Second), took, took)
	}
	r.sort(func(from, to time.Time) bool {
		if to.Sub(from) != 40*time.Millisecond {
			t.Errorf("asked for a request that took %v", to.Sub(from))
		}
		return to.After(begin.Add(45 * time.Second))
	})
	if h := r.merged(0); h.TotalCount() != 95 || r.setAside() != 5 || h.ValueAtPercentile(94) > int64(2*time.Millisecond) || h.Max() < int64(39*time.Millisecond) {
		t.Errorf("%d requests with latencies up to %v, %d set aside", h.TotalCount(), time.Duration(h.Max()), r.setAside())
	}
	if r.mergedService(0).TotalCount() != 95 {
		t.Error("service times of other requests than latencies")
	}
}
