package rpc

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/coteriedb/coterie/bench/light"
)

// asServer, in the environment, makes the test binary the server of BenchmarkUnary (see TestMain): its value is the kind.
const asServer = "COTERIE_RPC_BENCHMARK"

// Kinds of servers: how a method answers that does nothing.
const (
	generated = "generated"  // a service's method
	handler   = "handler"    // a Handler, at once
	inBulk    = "in-bulk"    // a Handler, later: a goroutine answers all that has gathered meanwhile
	viaGRPCGo = "on-grpc-go" // a service's method, on the other transport
)

// BenchmarkUnary is what a request costs the server that does nothing: 1000 callers on 100
// connections, as etcd's benchmark has them. The server is a process of its own, so cpu-ns/op is
// its processor time alone.
func BenchmarkUnary(b *testing.B) {
	for _, kind := range []string{generated, handler, inBulk, viaGRPCGo} {
		b.Run(kind, func(b *testing.B) { benchmarkUnary(b, kind) })
	}
}

func benchmarkUnary(b *testing.B, kind string) {
	server := exec.Command(os.Args[0])
	server.Env = append(os.Environ(), asServer+"="+kind)
	server.Stderr = os.Stderr
	in, err := server.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := server.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	address = strings.TrimSpace(address)
	const callers, perConn = 1000, 10
	var conns []*light.Conn
	for range callers / perConn {
		c, err := light.Dial(b.Context(), address, light.Options{})
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	var left atomic.Int64
	left.Store(int64(b.N))
	var calling sync.WaitGroup
	before := processTime(b, server.Process.Pid)
	b.ResetTimer()
	for i := range callers {
		calling.Add(1)
		c := conns[i%len(conns)]
		call := &light.Call{Method: checkMethod, Message: func([]byte) {}}
		call.End = func(err error) {
			if err == nil && left.Add(-1) >= 0 {
				err = c.Begin(call, nil)
				if err == nil {
					return
				}
			}
			if err != nil {
				b.Error(err)
			}
			calling.Done()
		}
		if err := c.Begin(call, nil); err != nil {
			b.Fatal(err)
		}
	}
	calling.Wait()
	b.StopTimer()
	b.ReportMetric(float64(processTime(b, server.Process.Pid)-before)/float64(b.N), "cpu-ns/op")
	in.Close()
	if err := server.Wait(); err != nil {
		b.Error(err)
	}
}

// processTime is the processor time that a process has taken.
func processTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("processor times are read from /proc, which is not there")
	}
	fields := strings.Fields(string(line[strings.LastIndexByte(string(line), ')'):]))
	var ticks [2]int
	for i := range ticks {
		if _, err := fmt.Sscan(fields[12+i], &ticks[i]); err != nil {
			b.Fatal(err)
		}
	}
	return time.Duration(ticks[0]+ticks[1]) * 10 * time.Millisecond // of which there are always 100 in a second
}

// runBenchmarkServer is the server's process. It says where it listens, and ends when its input does.
func runBenchmarkServer(kind string) error {
	o := Options{Traffic: &traffic{}}
	if kind == viaGRPCGo {
		o.Transport = GRPCGo
	}
	s := NewServer(o)
	healthpb.RegisterHealthServer(s, &testService{})
	switch kind {
	case handler:
		s.HandleUnary(checkMethod, func(c *Call) { c.Reply(serving) })
	case inBulk:
		waiting := make(chan *Call, 1000)
		defer close(waiting)
		go answerInBulk(waiting)
		s.HandleUnary(checkMethod, func(c *Call) { waiting <- c })
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if path := os.Getenv(asServer + "_PROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	signal.Ignore(syscall.SIGINT) // the parent's; it closes the input
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(Listener{Listener: l}) })
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Stop(expired())
	serving.Wait()
	return nil
}

// answerInBulk answers as a store does that writes to a disk what has gathered while it wrote the
// last time: a millisecond for each batch.
func answerInBulk(waiting chan *Call) {
	var batch []*Call
	for c := range waiting {
		time.Sleep(time.Millisecond)
		batch = append(batch[:0], c)
		for range len(waiting) {
			batch = append(batch, <-waiting)
		}
		for _, c := range batch {
			c.Reply(serving)
		}
	}
}
