package peer

import (
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// counting is a handler that counts, so that the record of a node is not what
// is measured.
type counting struct {
	*node
	got  atomic.Int64
	want int64
	done chan struct{}
}

func (c *counting) Receive(*raftpb.Message) {
	if c.got.Add(1) == c.want {
		close(c.done)
	}
}

// BenchmarkAppend sends MsgApp with an entry of 1 KiB from one member to
// another, with as many on their way as raft allows.
func BenchmarkAppend(b *testing.B) {
	const window = 256
	to := &counting{want: int64(b.N), done: make(chan struct{})}
	a := start(b, 1)
	to.node = start(b, 2, func(c *Config, _ *nodeSetup) { c.Handler = to })
	meet(b, a, to.node)
	m := []*raftpb.Message{bulk(1, 2, 3, 1024)}
	before := cpu(b)
	b.ResetTimer()
	for i := range int64(b.N) {
		for i-to.got.Load() >= window {
			time.Sleep(10 * time.Microsecond) // as raft waits for what is acknowledged
		}
		a.Send(m)
	}
	<-to.done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
	b.ReportMetric(float64(cpu(b)-before)/float64(b.N), "cpu-ns/message")
}

// cpu is the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
