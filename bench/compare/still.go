package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// watchMachineFlag alone on the command line makes this program a watcher of the machine: see stills.
const watchMachineFlag = "--watch-machine"

const (
	// A processor stood still when a thread that goes before all others, and slept for watchNap, woke up by stillFrom late.
	watchNap  = time.Millisecond
	stillFrom = 3 * time.Millisecond
	// stillAround is how long before and after a time in which all processors stood still single ones do so, too: such
	// times have been seen to come several at once.
	stillAround = 150 * time.Millisecond
	// stillNews is how long the news of it take.
	stillNews = 50 * time.Millisecond
)

// stills knows when the machine stood still. A virtual machine may not be given its processors for tens of milliseconds,
// a few times in a minute, whatever runs on it; that alone can be the p99 of all that is measured there, and as much with
// one server as with another. So a process of its own has a thread on each processor, which goes before all other
// threads and does nothing but sleep: when all of them woke up late at once, it was not for anything that ran here.
type stills struct {
	known bool // the watcher runs

	mu   sync.Mutex
	late [][]span // Guarded by mu. Of each processor, in order.
}

// span is a time, in ns of Unix time.
type span struct{ from, to int64 }

// watchMachine starts the watcher, which ends with ctx. Where there cannot be one, nothing is known to stand still.
func watchMachine(ctx context.Context) *stills {
	s := &stills{}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", watchMachineFlag)
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return s
	}
	lines := bufio.NewScanner(out)
	var processors int
	if !lines.Scan() {
		_ = cmd.Wait()
		return s
	}
	if _, err := fmt.Sscanf(lines.Text(), "processors %d", &processors); err != nil || processors < 1 {
		return s
	}
	s.known = true
	s.late = make([][]span, processors)
	go func() { // ends with the process, and that with ctx
		for lines.Scan() {
			var processor int
			var from, to int64
			if _, err := fmt.Sscanf(lines.Text(), "late %d %d %d", &processor, &from, &to); err == nil && processor < len(s.late) {
				s.mu.Lock()
				s.late[processor] = append(s.late[processor], span{from, to})
				s.mu.Unlock()
			}
		}
		_ = cmd.Wait()
	}()
	return s
}

// told is between, after the time that the news may take.
func (s *stills) told(from, to time.Time) bool {
	time.Sleep(stillAround + stillNews - time.Since(to))
	return s.between(from, to)
}

// between reports whether the machine stood still from the one time to the other, or a little before or after.
func (s *stills) between(from, to time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.overlap(0, from.Add(-stillAround).UnixNano(), to.Add(stillAround).UnixNano())
}

// overlap reports whether all processors from the given one on were late at some time from a to b. With mu.
func (s *stills) overlap(processor int, a, b int64) bool {
	if !s.known || a > b {
		return false
	}
	if processor == len(s.late) {
		return true
	}
	spans := s.late[processor]
	first, _ := slices.BinarySearchFunc(spans, a, func(l span, a int64) int { return cmp.Compare(l.to, a) })
	for _, l := range spans[first:] {
		if l.from > b {
			return false
		}
		if s.overlap(processor+1, max(a, l.from), min(b, l.to)) {
			return true
		}
	}
	return false
}
