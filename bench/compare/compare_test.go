package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func TestMarkdown(t *testing.T) {
	rows := matching(oneNode(), regexp.MustCompile("^put"))
	r := newResult("one-node", settings{rounds: 3, duration: 1500 * time.Millisecond}, rows)
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
	got := []byte(r.markdown())
	path := filepath.Join("testdata", "table.md")
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

func TestReplaceSection(t *testing.T) {
	page := "before\n" + pageBegin + "\nold\n" + pageEnd + "\nafter\n"
	got, err := replaceSection(page, "new\n")
	if want := "before\n" + pageBegin + "\n\nnew\n\n" + pageEnd + "\nafter\n"; err != nil || got != want {
		t.Errorf("%q, %v", got, err)
	}
	if again, err := replaceSection(got, "new"); err != nil || again != got {
		t.Errorf("a second time: %q, %v", again, err)
	}
	for _, bad := range []string{"", pageBegin, pageEnd + pageBegin} {
		if _, err := replaceSection(bad, "new"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestThePageHasASection(t *testing.T) {
	page, err := os.ReadFile("../../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replaceSection(string(page), "new"); err != nil {
		t.Error(err)
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
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q was accepted", args)
		}
	}
}

func TestServerThatDoesNotStart(t *testing.T) {
	bad := side{name: "broken", binary: "/bin/sh", command: []string{"-c", "echo no reason given >&2; exit 3"}}
	_, err := start(t.Context(), bad, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no reason given") {
		t.Errorf("starting it says %v", err)
	}
}
