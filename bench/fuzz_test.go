package bench

import (
	"bytes"
	"fmt"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// FuzzScan reads answers of a server straight from their bytes, and holds that to what protobuf reads: of an answer that it
// takes, and encodes, both say the same.
func FuzzScan(f *testing.F) {
	header := &pb.ResponseHeader{Revision: 7}
	for _, m := range []proto.Message{
		&pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{{Key: []byte("k")}, {Key: []byte("l")}}, Count: 9},
		&pb.WatchResponse{Header: header, Created: true},
		&pb.WatchResponse{Header: header, Canceled: true, CancelReason: "because"},
		&pb.WatchResponse{Header: header, Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v")}}, {}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = scan(b)
		_, _ = scanWatch(b, func([]byte) {}) // neither may panic
		var r pb.RangeResponse
		if proto.Unmarshal(b, &r) == nil {
			plain, err := proto.Marshal(&pb.RangeResponse{Header: r.Header, Kvs: r.Kvs, Count: r.Count})
			if err != nil {
				t.Fatal(err)
			}
			if s := scan(plain); s.revision != r.Header.GetRevision() || s.items != len(r.Kvs) || s.count != r.Count {
				t.Errorf("%v is scanned as %+v", &r, s)
			}
		}
		var w pb.WatchResponse
		if proto.Unmarshal(b, &w) != nil {
			return
		}
		plain, err := proto.Marshal(&pb.WatchResponse{Created: w.Created, Canceled: w.Canceled, CancelReason: w.CancelReason, Events: w.Events})
		if err != nil {
			return // text that is no UTF-8
		}
		var got, want [][]byte
		created, canceled := scanWatch(plain, func(v []byte) { got = append(got, bytes.Clone(v)) })
		for _, e := range w.Events {
			if v := e.GetKv().GetValue(); len(v) > 0 {
				want = append(want, v)
			}
		}
		if (canceled != nil) != w.Canceled || !w.Canceled && created != w.Created || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v is scanned as created %t, canceled %v, values %q", &w, created, canceled, got)
		}
	})
}

// FuzzProcess reads what a system says of a process.
func FuzzProcess(f *testing.F) {
	f.Add([]byte("12 (a (b) c) S 1 12 12 0 -1 4194560 1 0 0 0 7 5 0 0 20 0 1 0 3 4 5"), []byte("Name:\tx\nVmHWM:\t  200 kB\nVmRSS:\t 100 kB\n"))
	f.Add([]byte(")("), []byte("VmRSS:\n"))
	f.Fuzz(func(t *testing.T, stat, status []byte) {
		var s processSample
		if err := s.parseStat(stat); err == nil && !bytes.Contains(stat, []byte("("+s.command+")")) {
			t.Errorf("%q runs %q", stat, s.command)
		}
		_ = s.parseStatus(status) // must not panic
	})
}
