package consensus

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/wal"
)

// sink is a machine that costs nothing.
type sink struct {
	StateMachine
	results []machine.Result
}

func (s *sink) Apply(entries []machine.Entry) ([]machine.Result, error) {
	n := 0
	for _, e := range entries {
		n += len(e.Commands)
	}
	for len(s.results) < n {
		s.results = append(s.results, machine.Result{})
	}
	return s.results[:n], nil
}

// BenchmarkPropose is what a command of 300 bytes costs one member, with so many
// callers who propose again when they are answered: log and disk included, the
// machine and connections not.
func BenchmarkPropose(b *testing.B) {
	for _, callers := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			log, err := wal.Create(wal.Options{Dir: b.TempDir(), ClusterID: 1, MemberID: 1, Logger: zap.NewNop()}, 1, 1)
			must(b, err)
			j := newJournal()
			j.members = []machine.Member{{ID: 1}}
			n, err := Start(Config{
				ID: 1, Log: log, Machine: &sink{StateMachine: j}, Voters: []uint64{1},
				Tick: 100 * time.Millisecond, ElectionTicks: 10, RequestTimeout: 20 * time.Second, Logger: zap.NewNop(),
			})
			must(b, err)
			defer func() {
				n.Close()
				must(b, log.Close())
			}()
			for !n.Status().IsLeader {
				<-n.LeaderMoved()
			}
			command := make([]byte, 300)
			var left atomic.Int64
			left.Store(int64(b.N))
			var running sync.WaitGroup
			var before, after syscall.Rusage
			must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
			b.ReportAllocs()
			b.ResetTimer()
			running.Add(callers)
			for range callers {
				var done func(machine.Result)
				done = func(r machine.Result) {
					if r.Err != nil {
						b.Error(r.Err)
					}
					if left.Add(-1) < 0 {
						running.Done()
						return
					}
					n.Propose(command, done)
				}
				done(machine.Result{})
			}
			running.Wait()
			b.StopTimer()
			must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/op")
		})
	}
}
