package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/coteriedb/coterie/bench"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func testEnvironment() environment {
	return environment{
		Date: "2026-01-02", Etcd: "3.7.3", Coterie: "0.1.0", Commit: "abc", CPU: "Some CPU", CPUs: 2,
		Kernel: "6.1", Go: "go1.26", FileSystem: "ext4", SyncUS: 152.4,
	}
}

func testLoads() *table {
	rows := oneNodeRows()[:3]
	t := &table{Name: "one-node", Environment: testEnvironment(), Client: "the light one", Rounds: 3, Seconds: 1.5, required: required(rows)}
	for _, row := range rows {
		for _, rate := range []float64{900, 1000, 5000} { // the median is 1000
			for side, times := range []float64{1, 3} {
				t.add(row.name(), requestsPerSecond, side, times*rate)
				t.add(row.name(), p50Latency, side, 2000/times)
				t.add(row.name(), p99Latency, side, 9990/times)
				t.add(row.name(), cpuPerRequest, side, 60/times)
				t.add(row.name(), generatorCPU, side, 7)
			}
		}
	}
	return t
}

func TestLoadsOnThePage(t *testing.T) {
	r := testLoads()
	if err := r.failures(); err != nil {
		t.Error(err)
	}
	r.fail("put, 1000", coterieSide, 0)
	r.fail("put, 1000", coterieSide, 4)
	if err := r.failures(); err == nil || err.Error() != "put, 1000: 4 requests to Coterie failed" {
		t.Errorf("failures are reported as %v", err)
	}
	golden(t, "loads.md", r.markdown())
	golden(t, "loads.svg", r.chart())
}

func TestOtherFiguresOnThePage(t *testing.T) {
	p := keysPart()
	r := &table{Name: p.name, Environment: testEnvironment(), Client: "the light one", Flags: p.flags, Rounds: 1, Seconds: 1.5, required: p.required}
	for _, f := range []struct {
		cell
		etcd, coterie float64
	}{
		{cell{"1 M keys", residentMemory}, 1000 << 20, 500 << 20},
		{cell{"1 M keys", restartTime}, 5, 1},
		{cell{"count of 1 M keys", cpuPerRequest}, 20_000, 12},
	} {
		r.add(f.row, f.quantity, etcdSide, f.etcd)
		r.add(f.row, f.quantity, coterieSide, f.coterie)
	}
	pauses := pausesPart()
	r.required = pauses.required
	r.add(pauses.names[0], worstOverMedian, coterieSide, 2.5)
	golden(t, "list.md", r.markdown())
}

func TestRequirements(t *testing.T) {
	for _, c := range []struct {
		r             requirement
		etcd, coterie float64
		want          bool
	}{
		{atLeast(3), 10, 30, true}, {atLeast(3), 10, 29, false},
		{atMost(0.2), 10, 2, true}, {atMost(0.2), 10, 2.1, false},
		{requirement{least: 0.9, absolute: true}, 0.5, 0.9, true}, {requirement{least: 0.9, absolute: true}, 0.5, 0.89, false},
		{requirement{most: 3, absolute: true}, 1, 3, true}, {requirement{most: 3, absolute: true}, 100, 3.1, false},
		{atLeast(3), 0, 30, false},
	} {
		r := &table{required: map[cell]requirement{{"row", p50Latency}: c.r}}
		r.add("row", p50Latency, etcdSide, c.etcd)
		r.add("row", p50Latency, coterieSide, c.coterie)
		if f := r.Figures[0]; f.Holds == nil || *f.Holds != c.want {
			t.Errorf("%v of %g and %g: %v", c.r, c.etcd, c.coterie, f.Holds)
		}
	}
}

// Every requirement is of a figure that is measured, by name.
func TestRequirementsOfParts(t *testing.T) {
	for _, p := range parts() {
		for c := range p.required {
			if !slices.Contains(p.names, c.row) {
				t.Errorf("%s requires something of %q, which is none of %q", p.name, c.row, p.names)
			}
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-rewrite accepts it):\n%s", path, got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{9, 1, 2, 3}, 2.5}} {
		if got := median(c.of); got != c.want {
			t.Errorf("the median of %v is %v, want %v", c.of, got, c.want)
		}
	}
}

func allSections() (out []section) {
	for _, name := range append(comparedParts(), catchUpPart) {
		out = append(out, newSection(name))
	}
	return out
}

func TestSections(t *testing.T) {
	page := "before\n"
	for _, s := range allSections() {
		page += s.begin + "\nold\n" + s.end + "\nafter\n"
	}
	for _, s := range allSections() {
		updated, err := s.replace(page, "new "+s.name+"\n")
		if want := strings.Replace(page, s.begin+"\nold\n", s.begin+"\n\nnew "+s.name+"\n\n", 1); err != nil || updated != want {
			t.Errorf("%s: %q, %v", s.name, updated, err)
		}
		if again, err := s.replace(updated, "new "+s.name); err != nil || again != updated {
			t.Errorf("%s a second time: %q, %v", s.name, again, err)
		}
		page = updated // what the others wrote must survive
	}
	one := newSection("one-node")
	for _, bad := range []string{"", one.begin, one.end + one.begin} {
		if _, err := one.replace(bad, "new"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestThePageHasTheSections(t *testing.T) {
	page, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range allSections() {
		if _, err := s.replace(string(page), "new"); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestPublish(t *testing.T) {
	page, r := filepath.Join(t.TempDir(), "page.md"), testLoads()
	s := newSection(r.Name)
	if err := os.WriteFile(page, []byte(s.begin+s.end), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.publish(page, r); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(strings.TrimSuffix(page, ".md"), "one-node")
	text, err1 := os.ReadFile(page)
	numbers, err2 := os.ReadFile(base + ".json")
	chart, err3 := os.ReadFile(base + ".svg")
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "| put, 1000 |") || string(chart) != r.chart() {
		t.Errorf("%s\n%s", text, chart)
	}
	var back table
	if err := json.Unmarshal(numbers, &back); err != nil || len(back.Figures) != len(r.Figures) || !slices.Equal(back.Figures[0].Coterie, []float64{2700, 3000, 15000}) {
		t.Errorf("%s %v", numbers, err)
	}
}

func TestChosenParts(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "one-node three-members tls grpc-client watch rate keys pauses"},
		{[]string{"--parts", "keys,tls"}, "tls keys"},
		{[]string{"--parts", "catch-up"}, "catch-up"},
		{[]string{"--rows", "put, 1$"}, "one-node three-members"},
		{[]string{"--rows", "^watch: "}, "watch"},
	} {
		s, err := parse(c.args)
		if err != nil {
			t.Fatal(err)
		}
		chosen, err := s.chosen()
		var names []string
		for _, p := range chosen {
			names = append(names, p.name)
		}
		if got := strings.Join(names, " "); err != nil || got != c.want {
			t.Errorf("%q: %q, %v", c.args, got, err)
		}
	}
}

func TestCatchUpMarkdown(t *testing.T) {
	r := &caughtUp{Bytes: 2e9, Rate: 1000}
	for n := range 3 { // the medians are those of the second round; the ratio's is that of the third
		puts := func(p99 float64) *bench.Report {
			l := bench.Latency{P50US: p99 / 5, P99US: p99, P999US: 2 * p99, MaxUS: 3 * p99}
			return &bench.Report{Succeeded: int64(1000 * (n + 1)), Latency: l}
		}
		ms := float64(1000 * (n + 1))
		r.Rounds = append(r.Rounds, catchUpRound{FillSeconds: float64(30 + n), Seconds: float64(12 + n), Phases: []phase{
			{allUp, puts(ms)}, {oneDown, puts(1.5 * ms)}, {catching, puts([]float64{9000, 4000, 9000}[n])},
		}})
	}
	if err := r.failures(); err != nil {
		t.Error(err)
	}
	r.Rounds[1].Phases[2].Puts.Failed, r.Rounds[1].Phases[2].Puts.Unsent = 1, 2
	golden(t, "catchup.md", r.markdown())
}

func TestUnsentPuts(t *testing.T) {
	for _, c := range []struct {
		report bench.Report
		want   int64
	}{
		{bench.Report{Unsent: 2, Rate: 1000, Latency: bench.Latency{MaxUS: 5000}}, 2},
		{bench.Report{Unsent: 6, Rate: 1000, Latency: bench.Latency{MaxUS: 5000}, Interrupted: true}, 0},
		{bench.Report{Unsent: 9, Rate: 1000, Latency: bench.Latency{MaxUS: 5000}, Interrupted: true}, 3},
	} {
		if got := unsent(&c.report); got != c.want {
			t.Errorf("%+v: %d, want %d", c.report, got, c.want)
		}
	}
}

func TestFileSystem(t *testing.T) {
	proc := fstest.MapFS{"self/mountinfo": {Data: []byte(`1 0 8:1 / / rw - ext4 /dev/a rw
2 1 0:5 / /data rw shared:1 - xfs /dev/b rw
3 1 0:6 / /tmp rw - tmpfs tmpfs rw
`)}}
	for dir, want := range map[string]string{"/x": "ext4", "/data": "xfs", "/data/y": "xfs", "/database": "ext4", "/tmp/z": "tmpfs"} {
		if got := fileSystem(proc, dir); got != want {
			t.Errorf("%s is on %s, want %s", dir, got, want)
		}
	}
	if got := fileSystem(fstest.MapFS{}, "/x"); got != unknown {
		t.Errorf("without mounts: %s", got)
	}
}

func TestBadArguments(t *testing.T) {
	for _, args := range [][]string{
		{"--rounds", "0"}, {"--duration", "1ms"}, {"extra"}, {"--rows", "("}, {"--rows", "no such load"}, {"--no-such-flag"},
		{"--parts", "none"}, {"--parts", ""}, {"--parts", "three-members", "--rows", "txn"},
		{"--gigabytes", "0"}, {"--gigabytes", "NaN"}, {"--rate", "-1"},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	bad := side{name: "broken", binary: "/bin/sh", command: []string{"-c", "echo no reason given >&2; exit 3"}}
	_, err := start(t.Context(), bad, t.TempDir(), serverOptions{members: 1})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no reason given") {
		t.Errorf("starting it says %v", err)
	}
}

func TestCertificate(t *testing.T) {
	c, err := newCertificate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(c.file, c.keyFile)
	if err != nil {
		t.Fatal(err)
	}
	server, client := net.Pipe()
	defer server.Close()
	defer client.Close()
	shaken := make(chan error, 1)
	go func() { // ends with the handshake
		shaken <- tls.Server(server, &tls.Config{Certificates: []tls.Certificate{pair}}).Handshake()
	}()
	cfg := c.client.Clone()
	cfg.ServerName = "127.0.0.1"
	if err := errors.Join(tls.Client(client, cfg).Handshake(), <-shaken); err != nil {
		t.Error(err)
	}
}
