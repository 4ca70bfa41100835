package rpc

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// BenchmarkUnary is the cost of a request that does nothing, client and server together: 1000
// callers on 100 connections, as etcd's benchmark has them.
func BenchmarkUnary(b *testing.B) {
	s := NewServer(Options{Traffic: &traffic{}})
	healthpb.RegisterHealthServer(s, &testService{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(Listener{Listener: l}) })
	var clients []healthpb.HealthClient
	for range 100 {
		cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer cc.Close()
		clients = append(clients, healthpb.NewHealthClient(cc))
	}
	b.ReportAllocs()
	var left atomic.Int64
	left.Store(int64(b.N))
	var callers sync.WaitGroup
	before := cpuTime(b)
	b.ResetTimer()
	for i := range 1000 {
		callers.Go(func() {
			for left.Add(-1) >= 0 {
				if _, err := clients[i%len(clients)].Check(context.Background(), &healthpb.HealthCheckRequest{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	// Of the whole process, and not disturbed by others on the machine.
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
	s.Stop(context.Background())
	serving.Wait()
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
