package main

import (
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookOut writes when each processor stood still, until writing fails.
func lookOut(w io.Writer) error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	var mu sync.Mutex // guards w and failed
	var failed error
	write := func(format string, args ...any) bool {
		mu.Lock()
		defer mu.Unlock()
		if _, err := fmt.Fprintf(w, format, args...); err != nil {
			failed = err
		}
		return failed == nil
	}
	n := set.Count()
	runtime.GOMAXPROCS(n + 1)
	ready := make(chan error, n)
	var group sync.WaitGroup
	processor := 0
	for cpu := 0; processor < n; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		number := processor
		processor++
		group.Go(func() { // ends when nobody listens
			runtime.LockOSThread()
			err := goFirst(cpu)
			ready <- err
			for last := time.Now(); err == nil; {
				nap := unix.NsecToTimespec(int64(watchNap))
				_ = unix.Nanosleep(&nap, nil)
				now := time.Now()
				if now.Sub(last) > watchNap+stillFrom && !write("late %d %d %d\n", number, last.UnixNano(), now.UnixNano()) {
					return
				}
				last = now
			}
		})
	}
	for range n {
		if err := <-ready; err != nil {
			return err
		}
	}
	write("processors %d\n", n)
	group.Wait()
	return failed
}

// goFirst has the calling thread run on one processor, before all others.
func goFirst(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 90}, 0)
}
