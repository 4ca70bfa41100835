package main

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/coteriedb/coterie/bench"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func TestMarkdown(t *testing.T) {
	rows := matching(oneNode(), regexp.MustCompile("^put"))
	r := newResult(settings{members: 1, rounds: 3, duration: 1500 * time.Millisecond}, rows)
	r.Environment = environment{
		Date: "2026-01-02", Etcd: "etcd Version: 3.7.3", Coterie: "coterie 0.1.0", Commit: "abc", CPU: "Some CPU", CPUs: 2,
		Kernel: "6.1", Go: "go1.26", FileSystem: "ext4", SyncUS: 152.4,
	}
	for i := range r.Rows {
		for _, rate := range []float64{900, 1000, 5000} { // the median is 1000
			e := sample{PerSecond: rate, P50US: 2000, P99US: 9990, ServerCPUUS: 60, ResidentBytes: 90 << 20}
			c := sample{PerSecond: 3 * rate, P50US: 700, P99US: 1999, ServerCPUUS: 15, ResidentBytes: 45 << 20}
			r.Rows[i].samples(0).add(e)
			r.Rows[i].samples(1).add(c)
		}
	}
	if err := r.failures(); err != nil {
		t.Error(err)
	}
	r.Rows[2].Coterie[1].Failed = 4
	if err := r.failures(); err == nil || !strings.Contains(err.Error(), "1000 clients: 4 requests to Coterie failed") {
		t.Errorf("failures are reported as %v", err)
	}
	golden(t, "table.md", r.markdown())
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
		var s samples
		for _, x := range c.of {
			s.add(sample{PerSecond: x})
		}
		if got := s.median(perSecond); got != c.want {
			t.Errorf("the median of %v is %v, want %v", c.of, got, c.want)
		}
	}
}

func TestSections(t *testing.T) {
	all := []section{oneNodeSection, threeMembersSection, catchUpSection}
	page := "before\n"
	for _, s := range all {
		page += s.begin + "\nold\n" + s.end + "\nafter\n"
	}
	for _, s := range all {
		updated, err := s.replace(page, "new "+s.name+"\n")
		if want := strings.Replace(page, s.begin+"\nold\n", s.begin+"\n\nnew "+s.name+"\n\n", 1); err != nil || updated != want {
			t.Errorf("%s: %q, %v", s.name, updated, err)
		}
		if again, err := s.replace(updated, "new "+s.name); err != nil || again != updated {
			t.Errorf("%s a second time: %q, %v", s.name, again, err)
		}
		page = updated // what the others wrote must survive
	}
	for _, bad := range []string{"", oneNodeSection.begin, oneNodeSection.end + oneNodeSection.begin} {
		if _, err := oneNodeSection.replace(bad, "new"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestThePageHasTheSections(t *testing.T) {
	page, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []section{oneNodeSection, threeMembersSection, catchUpSection} {
		if _, err := s.replace(string(page), "new"); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestPublish(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, []byte(threeMembersSection.begin+threeMembersSection.end), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := threeMembersSection.publish(page, "table", map[string]int{"n": 3}); err != nil {
		t.Fatal(err)
	}
	text, err1 := os.ReadFile(page)
	numbers, err2 := os.ReadFile(filepath.Join(strings.TrimSuffix(page, ".md"), "three-members.json"))
	if !strings.Contains(string(text), "\ntable\n") || string(numbers) != "{\n  \"n\": 3\n}\n" {
		t.Errorf("%q %v, %q %v", text, err1, numbers, err2)
	}
}

func TestRowsOfThreeMembers(t *testing.T) {
	var names []string
	for _, r := range threeMembers() {
		names = append(names, r.name())
	}
	want := []string{"put, 1", "put, 100", "put, 1000", "range, linearizable, 1000", "range, serializable, 1000"}
	if !slices.Equal(names, want) {
		t.Errorf("%q, want %q", names, want)
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
		{"--members", "0"}, {"--members", "10"}, {"--members", "3", "--rows", "txn"},
		{"--catch-up", "--gigabytes", "0"}, {"--catch-up", "--gigabytes", "NaN"}, {"--catch-up", "--rate", "-1"},
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
