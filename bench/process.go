package bench

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc: 1/100 s, on every architecture of Linux that Go supports.
const clockTick = 10 * time.Millisecond

// processTable reads what the kernel tells of processes, in the form of Linux's /proc.
type processTable struct{ proc fs.FS }

func newProcessTable() processTable { return processTable{os.DirFS("/proc")} }

// ResidentBytes is the memory of a process that is in RAM.
func ResidentBytes(pid int) (int64, error) {
	s, err := newProcessTable().sample(pid)
	return s.resident, err
}

// processSample is what a process has used up to a moment.
type processSample struct {
	pid         int
	command     string
	cpu         time.Duration // user and system
	resident    int64         // bytes
	residentMax int64         // bytes, since the process began
}

func (t processTable) self() (processSample, error) { return t.sample(os.Getpid()) }

func (t processTable) sampleAll(pids []int) ([]processSample, error) {
	samples := make([]processSample, 0, len(pids))
	for _, pid := range pids {
		s, err := t.sample(pid)
		if err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

func (t processTable) sample(pid int) (processSample, error) {
	s := processSample{pid: pid}
	dir := strconv.Itoa(pid)
	stat, err := fs.ReadFile(t.proc, dir+"/stat")
	if err == nil {
		err = s.parseStat(stat)
	}
	if err != nil {
		return s, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
	}
	status, err := fs.ReadFile(t.proc, dir+"/status")
	if err == nil {
		err = s.parseStatus(status)
	}
	if err != nil {
		return s, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	return s, nil
}

// parseStat reads one line: pid (command) state ... The command may itself hold spaces and
// parentheses, so fields count from its last closing one.
func (s *processSample) parseStat(stat []byte) error {
	open, closing := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || closing < open {
		return fmt.Errorf("no command in %q", stat)
	}
	s.command = string(stat[open+1 : closing])
	fields := strings.Fields(string(stat[closing+1:]))
	const utime, stime = 11, 12 // counted from the state
	if len(fields) <= stime {
		return fmt.Errorf("only %d fields in %q", len(fields), stat)
	}
	var ticks int64
	for _, f := range fields[utime : stime+1] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return err
		}
		ticks += n
	}
	s.cpu = time.Duration(ticks) * clockTick
	return nil
}

// parseStatus reads the lines "VmRSS: n kB" and "VmHWM: n kB"; a zombie has neither.
func (s *processSample) parseStatus(status []byte) error {
	found := 0
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &s.resident
		case "VmHWM":
			to = &s.residentMax
		default:
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != 2 || fields[1] != "kB" {
			return fmt.Errorf("cannot read %q", line)
		}
		kb, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return err
		}
		*to, found = kb<<10, found+1
	}
	if found != 2 {
		return fmt.Errorf("it has no memory: the process has ended")
	}
	return nil
}

// Usage is what a process used during the measured part.
type Usage struct {
	PID              int     `json:"pid"`
	Command          string  `json:"command"`
	CPUSeconds       float64 `json:"cpu_seconds"`
	CPUPerRequestUS  float64 `json:"cpu_us_per_request"`
	ResidentBytes    int64   `json:"resident_bytes"`     // at the end
	ResidentMaxBytes int64   `json:"resident_max_bytes"` // since the process began
}

func usages(before, after []processSample, requests int64) []Usage {
	var out []Usage
	for i, a := range after {
		cpu := a.cpu - before[i].cpu
		u := Usage{
			PID: a.pid, Command: a.command, CPUSeconds: cpu.Seconds(),
			ResidentBytes: a.resident, ResidentMaxBytes: a.residentMax,
		}
		if requests > 0 {
			u.CPUPerRequestUS = micros(cpu) / float64(requests)
		}
		out = append(out, u)
	}
	return out
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
