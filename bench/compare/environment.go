package main

import (
	"context"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// environment is what numbers depend on besides the servers.
type environment struct {
	Date       string  `json:"date"`
	Etcd       string  `json:"etcd"`
	Coterie    string  `json:"coterie"`
	Commit     string  `json:"commit,omitempty"`
	CPU        string  `json:"cpu"`
	CPUs       int     `json:"cpus"`
	Kernel     string  `json:"kernel"`
	Go         string  `json:"go"`
	FileSystem string  `json:"file_system"`
	SyncUS     float64 `json:"sync_us"` // median of appending 4 KiB to a file and syncing it
}

func surroundings(ctx context.Context, work string, sides [sideCount]side) (environment, error) {
	proc := os.DirFS("/proc")
	sync, err := syncTime(work)
	return environment{
		Date:       time.Now().UTC().Format(time.DateOnly),
		Etcd:       sides[etcdSide].version,
		Coterie:    sides[coterieSide].version,
		Commit:     commit(ctx),
		CPU:        cpuModel(proc),
		CPUs:       runtime.NumCPU(),
		Kernel:     kernel(proc),
		Go:         runtime.Version(),
		FileSystem: fileSystem(proc, work),
		SyncUS:     tenths(float64(sync) / float64(time.Microsecond)),
	}, err
}

func (e environment) markdown() string {
	coterie := e.Coterie
	if e.Commit != "" {
		coterie += ", commit " + e.Commit
	}
	return fmt.Sprintf(`- %s; Coterie: %s; etcd: %s
- %d × %s; Linux %s; %s; the load generator runs on the same machine
- data on %s, where appending 4 KiB and syncing takes %.0f µs
`,
		e.Date, coterie, e.Etcd, e.CPUs, e.CPU, e.Kernel, e.Go, e.FileSystem, e.SyncUS)
}

// commit is empty outside a repository.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

const unknown = "unknown"

func cpuModel(proc fs.FS) string {
	info, _ := fs.ReadFile(proc, "cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH + " CPU"
}

func kernel(proc fs.FS) string {
	release, err := fs.ReadFile(proc, "sys/kernel/osrelease")
	if err != nil {
		return unknown
	}
	return strings.TrimSpace(string(release))
}

// fileSystem is the type of the file system that holds dir: of the mount point with the longest
// matching path.
func fileSystem(proc fs.FS, dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	mounts, _ := fs.ReadFile(proc, "self/mountinfo")
	best, kind := "", unknown
	for line := range strings.Lines(string(mounts)) {
		mount, source, ok := strings.Cut(line, " - ")
		fields, types := strings.Fields(mount), strings.Fields(source)
		if !ok || len(fields) < 5 || len(types) == 0 {
			continue
		}
		point := fields[4]
		within := dir == point || strings.HasPrefix(dir, strings.TrimSuffix(point, "/")+"/")
		if within && len(point) >= len(best) {
			best, kind = point, types[0]
		}
	}
	return kind
}

// syncTime measures what a durable write costs at least on the file system of dir.
func syncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "sync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4<<10)
	times := make([]time.Duration, 101)
	for i := range times {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}

// tenths and its siblings drop the digits that mean nothing.
func tenths(x float64) float64      { return math.Round(10*x) / 10 }
func hundredths(x float64) float64  { return math.Round(100*x) / 100 }
func thousandths(x float64) float64 { return math.Round(1000*x) / 1000 }
