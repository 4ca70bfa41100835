package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/bench"
	"github.com/coteriedb/coterie/bench/light"
)

const (
	// listRest is how long a server may give back memory after its whole data was listed.
	listRest = 5 * time.Second
	// restartPause is the pause between two questions to a server that starts.
	restartPause   = 2 * time.Millisecond
	restartTimeout = 2 * time.Minute
)

var (
	residentMemory = quantity{"resident memory", bytesUnit}
	listedMemory   = quantity{"resident memory after listing all", bytesUnit}
	listTime       = quantity{"time of listing all", secondsUnit}
	diskSpace      = quantity{"disk", bytesUnit}
	restartTime    = quantity{"restart until the first linearizable read", secondsUnit}
)

// manyKeys is the data of the part of many keys.
func manyKeys() bench.Data {
	return bench.Data{Prefix: "keys/", Keys: 1_000_000, KeySize: 32, ValueSize: 512, Sequential: true, Seed: 1}
}

// keysPart is what a million keys cost: to keep, to list, to count, and to start with. Each server runs alone.
func keysPart() part {
	const row, page, count = "1 M keys", "range, limit 500, of 1 M keys", "count of 1 M keys"
	p := part{name: "keys", light: true, names: []string{row, page, count}}
	p.flags = []string{"--quota-backend-bytes=8589934592"}
	p.required = map[cell]requirement{
		{row, residentMemory}:  atMost(0.6),
		{row, listedMemory}:    atMost(0.3),
		{row, diskSpace}:       atMost(0.8),
		{row, restartTime}:     atMost(0.125),
		{page, cpuPerRequest}:  atMost(0.02),
		{count, cpuPerRequest}: atMost(0.02),
	}
	p.round = func(ctx context.Context, m *measuring, number int) error {
		return m.withEach(ctx, number, serverOptions{members: 1, flags: p.flags}, func(v *server, side int) error {
			data := manyKeys()
			fill, err := bench.NewPut(data)
			if err != nil {
				return err
			}
			plan := bench.Plan{Clients: 1000, Total: int64(data.Keys), Duration: bench.MaxDuration}
			if r, err := m.load(ctx, v, "puts of 1 M keys", side, fill, 100, plan); err != nil {
				return err
			} else if r.Succeeded < plan.Total {
				return fmt.Errorf("only %d of %d keys were written", r.Succeeded, plan.Total)
			}
			if err := v.settle(ctx); err != nil {
				return err
			}
			if err := m.addMemory(row, residentMemory, v, side); err != nil {
				return err
			}
			if err := m.addDisk(row, v, side); err != nil {
				return err
			}
			for _, r := range []struct {
				row     string
				options bench.RangeOptions
			}{
				{page, bench.RangeOptions{Span: data.Keys, Limit: 500}},
				{count, bench.RangeOptions{Span: data.Keys, CountOnly: true}},
			} {
				load, err := bench.NewRange(bench.KV{Data: data, NoFill: true}, r.options)
				if err != nil {
					return err
				}
				report, err := m.load(ctx, v, r.row, side, load, 1, bench.Plan{Clients: 1})
				if err != nil {
					return err
				}
				m.table.add(r.row, p50Latency, side, tenths(report.Latency.P50US))
				m.table.add(r.row, cpuPerRequest, side, tenths(report.ServerCPUPerRequest()))
			}
			if err := m.listAll(ctx, v, row, side); err != nil {
				return err
			}
			return m.restart(ctx, v, row, side)
		})
	}
	return p
}

func (m *measuring) addMemory(row string, q quantity, v *server, side int) error {
	var sum int64
	for _, pid := range v.pids() {
		n, err := bench.ResidentBytes(pid)
		if err != nil {
			return err
		}
		sum += n
	}
	m.table.add(row, q, side, float64(sum))
	m.progress.step("%-34s %-8s %s", q.name, v.side.name, q.text(float64(sum)))
	return nil
}

// addDisk adds the space that the files of the server's data directories occupy.
func (m *measuring) addDisk(row string, v *server, side int) error {
	var sum int64
	err := filepath.WalkDir(v.dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile
		}
		if err != nil || d.IsDir() || filepath.Ext(path) == ".log" && filepath.Dir(path) == v.dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil // the same
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512 // whatever the file system's blocks are
		}
		return nil
	})
	m.table.add(row, diskSpace, side, float64(sum))
	return err
}

// listAll asks for all keys in one request, as the API allows it.
func (m *measuring) listAll(ctx context.Context, v *server, row string, side int) error {
	cli, err := v.members[0].client()
	if err != nil {
		return err
	}
	defer cli.Close()
	data, began := manyKeys(), time.Now()
	all, err := cli.Get(ctx, data.Prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("listing all keys: %w", err)
	}
	took := time.Since(began)
	if len(all.Kvs) != data.Keys {
		return fmt.Errorf("listing all keys gave %d of %d", len(all.Kvs), data.Keys)
	}
	all = nil
	debug.FreeOSMemory() // of the generator
	m.table.add(row, listTime, side, hundredths(took.Seconds()))
	select {
	case <-time.After(listRest):
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.addMemory(row, listedMemory, v, side)
}

// restart ends the server in order and measures from the start of the process to the first answer to a linearizable read.
func (m *measuring) restart(ctx context.Context, v *server, row string, side int) error {
	if err := v.members[0].end(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	began := time.Now()
	if err := v.members[0].launch(); err != nil {
		return err
	}
	for {
		err := readOnce(ctx, v.members[0].address)
		if err == nil {
			break
		}
		select {
		case <-v.members[0].exited:
			return fmt.Errorf("it ended while starting: %w", v.members[0].exitErr)
		case <-ctx.Done():
			return fmt.Errorf("no answer after the restart: %w", err)
		case <-time.After(restartPause):
		}
	}
	took := time.Since(began).Seconds()
	m.table.add(row, restartTime, side, thousandths(took))
	m.progress.step("%-34s %-8s %.3f s", "restart", v.side.name, took)
	return nil
}

// readOnce reads one key from a server without TLS, and is not patient with one that is not there.
func readOnce(ctx context.Context, address string) error {
	conn, err := light.Dial(ctx, address, light.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	request, err := proto.Marshal(&pb.RangeRequest{Key: []byte(manyKeys().Prefix), CountOnly: true, RangeEnd: []byte{0}})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	call := &light.Call{Method: pb.KV_Range_FullMethodName, Message: func([]byte) {}, End: func(err error) { ended <- err }}
	if err := conn.Begin(call, request); err != nil {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return status.Error(codes.DeadlineExceeded, ctx.Err().Error())
	}
}
