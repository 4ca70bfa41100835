package main

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/coteriedb/coterie/bench"
)

// row is one load of a comparison.
type row struct {
	load    string
	clients int
	conns   int
	reads   bool // needs a filled key space
	make    func(noFill bool) (bench.Load, error)
}

func (r row) name() string { return fmt.Sprintf("%s, %d", r.load, r.clients) }

// keys is the data of all rows: values of 256 bytes, a key space that fits any cache.
func keys() bench.Data {
	return bench.Data{Prefix: "bench/", Keys: 10_000, KeySize: 24, ValueSize: 256, Seed: 1}
}

// oneNode is the first comparison: what a single server does for few and for many clients.
func oneNode() []row {
	put := func(bool) (bench.Load, error) { return bench.NewPut(keys()) }
	read := func(o bench.RangeOptions) func(bool) (bench.Load, error) {
		return func(noFill bool) (bench.Load, error) {
			return bench.NewRange(bench.KV{Data: keys(), NoFill: noFill}, o)
		}
	}
	linearizable, serializable := read(bench.RangeOptions{}), read(bench.RangeOptions{Serializable: true})
	txn := func(noFill bool) (bench.Load, error) { return bench.NewTxn(bench.KV{Data: keys(), NoFill: noFill}, 1) }
	return []row{
		{load: "put", clients: 1, conns: 1, make: put},
		{load: "put", clients: 100, conns: 100, make: put},
		{load: "put", clients: 1000, conns: 100, make: put},
		{load: "range, linearizable", clients: 100, conns: 100, reads: true, make: linearizable},
		{load: "range, linearizable", clients: 1000, conns: 100, reads: true, make: linearizable},
		{load: "range, serializable", clients: 100, conns: 100, reads: true, make: serializable},
		{load: "range, serializable", clients: 1000, conns: 100, reads: true, make: serializable},
		{load: "txn", clients: 100, conns: 100, reads: true, make: txn},
		{load: "txn", clients: 1000, conns: 100, reads: true, make: txn},
	}
}

// threeMembers is the comparison of clusters. A single connection goes to the leader, more are spread over all members.
func threeMembers() []row {
	return slices.DeleteFunc(oneNode(), func(r row) bool {
		return r.load == "txn" || r.reads && r.clients != 1000
	})
}

func (s settings) allRows() []row {
	if s.members > 1 {
		return threeMembers()
	}
	return oneNode()
}

func matching(rows []row, pattern *regexp.Regexp) (out []row) {
	for _, r := range rows {
		if pattern.MatchString(r.name()) {
			out = append(out, r)
		}
	}
	return out
}
