package main

import (
	"fmt"

	"github.com/coteriedb/coterie/bench"
)

// row is one load of a comparison.
type row struct {
	load    string
	clients int
	conns   int
	reads   bool // needs a filled key space
	make    func(noFill bool) (bench.Load, error)
	// What is required: 0 is nothing.
	rate, cpu float64 // of the ratios of requests/s, at least, and of the server's CPU time for a request, at most
}

func (r row) name() string { return fmt.Sprintf("%s, %d", r.load, r.clients) }

// keys is the data of most rows: values of 256 bytes, a key space that fits any cache.
func keys() bench.Data {
	return bench.Data{Prefix: "bench/", Keys: 10_000, KeySize: 24, ValueSize: 256, Seed: 1}
}

func put(bool) (bench.Load, error) { return bench.NewPut(keys()) }

func read(o bench.RangeOptions) func(bool) (bench.Load, error) {
	return func(noFill bool) (bench.Load, error) {
		return bench.NewRange(bench.KV{Data: keys(), NoFill: noFill}, o)
	}
}

func txn(noFill bool) (bench.Load, error) {
	return bench.NewTxn(bench.KV{Data: keys(), NoFill: noFill}, 1)
}

func keepAlive(clients int) func(bool) (bench.Load, error) {
	return func(bool) (bench.Load, error) {
		return bench.NewLeaseKeepAlive(clients, bench.LeaseOptions{PerClient: 1, TTL: leaseTTL})
	}
}

// oneNodeRows are what a single server does for few and for many clients.
func oneNodeRows() []row {
	linearizable, serializable := read(bench.RangeOptions{}), read(bench.RangeOptions{Serializable: true})
	return []row{
		{load: "put", clients: 1, conns: 1, make: put, rate: 1.7},
		{load: "put", clients: 100, conns: 100, make: put},
		{load: "put", clients: 1000, conns: 100, make: put, rate: 3, cpu: 0.2},
		{load: "range, linearizable", clients: 1000, conns: 100, reads: true, make: linearizable, rate: 2.5, cpu: 0.25},
		{load: "range, serializable", clients: 1000, conns: 100, reads: true, make: serializable, rate: 2, cpu: 0.25},
		{load: "txn", clients: 1000, conns: 100, reads: true, make: txn, rate: 2.5},
		{load: "lease keep-alive", clients: 100, conns: 100, make: keepAlive(100), rate: 2},
	}
}

// mainRows are those whose ratios must also hold with TLS, within a part of them, and that are measured with grpc-go's
// client for comparison.
func mainRows() []row {
	all := oneNodeRows()
	return all[2:6]
}

// relaxed lets the requirements of rows differ by a part of them.
func relaxed(rows []row, by float64) []row {
	for i := range rows {
		rows[i].rate *= 1 - by
		rows[i].cpu *= 1 + by
	}
	return rows
}

// free has the requirements of rows dropped.
func free(rows []row) []row {
	for i := range rows {
		rows[i].rate, rows[i].cpu = 0, 0
	}
	return rows
}

// threeMembersRows are the loads of clusters. A single connection goes to the leader, more are spread over all members.
func threeMembersRows() []row {
	all := oneNodeRows()
	rows := free(all[:5])
	rows[2].rate, rows[2].cpu = 3, 0.25
	return rows
}

// required are the requirements of loads.
func required(rows []row) map[cell]requirement {
	all := make(map[cell]requirement)
	for _, r := range rows {
		if r.rate > 0 {
			all[cell{r.name(), requestsPerSecond}] = atLeast(r.rate)
		}
		if r.cpu > 0 {
			all[cell{r.name(), cpuPerRequest}] = atMost(r.cpu)
		}
	}
	return all
}
