package wire

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// messages are one of each kind that is done by hand, and some that are not.
var messages = []proto.Message{
	&pb.RangeRequest{}, &pb.PutRequest{}, &pb.DeleteRangeRequest{}, &pb.TxnRequest{}, &pb.CompactionRequest{},
	&pb.LeaseGrantRequest{}, &pb.LeaseRevokeRequest{}, &pb.LeaseKeepAliveRequest{}, &pb.LeaseTimeToLiveRequest{}, &pb.LeaseCheckpointRequest{},
	&pb.WatchRequest{}, &pb.InternalRaftRequest{},
	&pb.RangeResponse{}, &pb.PutResponse{}, &pb.DeleteRangeResponse{}, &pb.TxnResponse{}, &pb.RangeStreamResponse{}, &pb.WatchResponse{},
	&pb.LeaseGrantResponse{}, &pb.LeaseRevokeResponse{}, &pb.LeaseKeepAliveResponse{}, &pb.LeaseTimeToLiveResponse{},
	&pb.ResponseHeader{}, &mvccpb.KeyValue{}, &mvccpb.Event{},
	&pb.AlarmRequest{}, &pb.StatusResponse{}, &authpb.User{},
}

func fresh(m proto.Message) proto.Message { return m.ProtoReflect().New().Interface() }

var deterministic = proto.MarshalOptions{Deterministic: true}

func official(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := deterministic.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkUnmarshal decodes b into m, and compares with what the official codec makes of it.
func checkUnmarshal(t *testing.T, b []byte, m proto.Message) {
	t.Helper()
	want := fresh(m)
	wantErr := proto.Unmarshal(b, want)
	err := Unmarshal(bytes.Clone(b), m)
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("%x: error %v, official %v", b, err, wantErr)
	}
	if err == nil && !proto.Equal(m, want) {
		t.Fatalf("%x:\n     got %v\nofficial %v", b, m, want)
	}
	if err == nil && !bytes.Equal(official(t, m), official(t, want)) {
		t.Fatalf("%x: decoded differently, which Equal does not see", b)
	}
}

func checkAppend(t *testing.T, m proto.Message) {
	t.Helper()
	const before = "what is there"
	got, err := Append([]byte(before), m)
	want, wantErr := deterministic.MarshalAppend([]byte(before), m)
	if fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("%v: error %v, official %v", m, err, wantErr)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("%v:\n     got %x\nofficial %x", m, got, want)
	}
}

// TestEveryField sets each field of each message alone, also those of messages in it: one that a later version of
// etcd's API adds must not be lost.
func TestEveryField(t *testing.T) {
	for _, m := range messages {
		t.Run(string(m.ProtoReflect().Descriptor().Name()), func(t *testing.T) {
			seen := 0
			each(m.ProtoReflect().New(), nil, 3, func(set func()) {
				seen++
				set()
			}, func(m protoreflect.Message) {
				checkAppend(t, m.Interface())
				checkUnmarshal(t, official(t, m.Interface()), fresh(m.Interface()))
			})
			if seen == 0 {
				t.Error("no fields")
			}
		})
	}
}

// each sets one field after the other of a message, to all values worth a test, and has it checked each time.
func each(top protoreflect.Message, in protoreflect.Message, depth int, do func(func()), check func(protoreflect.Message)) {
	if in == nil {
		in = top
	}
	check(top)
	if depth == 0 {
		return
	}
	fields := in.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		for _, v := range interesting(fd) {
			do(func() {
				if fd.IsList() {
					list := in.Mutable(fd).List()
					list.Append(v)
					check(top)
					list.Append(v)
				} else {
					in.Set(fd, v)
				}
			})
			check(top)
			in.Clear(fd)
		}
		if fd.Message() == nil || fd.IsMap() {
			continue
		}
		if fd.IsList() {
			each(top, in.Mutable(fd).List().AppendMutable().Message(), depth-1, do, check)
		} else {
			each(top, in.Mutable(fd).Message(), depth-1, do, check)
		}
		in.Clear(fd)
	}
}

// interesting returns values of a field, or of an element of one that is a list.
func interesting(fd protoreflect.FieldDescriptor) (vs []protoreflect.Value) {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return []protoreflect.Value{protoreflect.ValueOfBool(true), protoreflect.ValueOfBool(false)}
	case protoreflect.EnumKind:
		for _, n := range []protoreflect.EnumNumber{0, 1, 2, 77, -1, math.MinInt32} {
			vs = append(vs, protoreflect.ValueOfEnum(n))
		}
	case protoreflect.Int64Kind:
		for _, n := range []int64{0, 1, 127, 128, 1 << 40, -1, math.MinInt64, math.MaxInt64} {
			vs = append(vs, protoreflect.ValueOfInt64(n))
		}
	case protoreflect.Uint64Kind:
		for _, n := range []uint64{0, 1, 1 << 63, math.MaxUint64} {
			vs = append(vs, protoreflect.ValueOfUint64(n))
		}
	case protoreflect.BytesKind:
		for _, n := range []int{0, 1, 100, 127, 128, 700} {
			vs = append(vs, protoreflect.ValueOfBytes(bytes.Repeat([]byte{'b'}, n)))
		}
	case protoreflect.StringKind:
		vs = append(vs, protoreflect.ValueOfString(""), protoreflect.ValueOfString("größer"))
	}
	return vs
}

// random fills a message at random.
func random(r *rand.Rand, m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if r.IntN(3) == 0 || fd.IsMap() {
			continue
		}
		for range 1 + r.IntN(3) {
			switch vs := interesting(fd); {
			case fd.Message() != nil && depth == 0:
			case fd.Message() != nil && fd.IsList():
				random(r, m.Mutable(fd).List().AppendMutable().Message(), depth-1)
			case fd.Message() != nil:
				random(r, m.Mutable(fd).Message(), depth-1)
			case len(vs) == 0:
			case fd.IsList():
				m.Mutable(fd).List().Append(vs[r.IntN(len(vs))])
			default:
				m.Set(fd, vs[r.IntN(len(vs))])
			}
		}
	}
	if r.IntN(20) == 0 {
		m.SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 999, protowire.BytesType), []byte("unknown")))
	}
}

// TestRandom sends random messages both ways, and decodes always into the same ones.
func TestRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, kind := range messages {
		t.Run(string(kind.ProtoReflect().Descriptor().Name()), func(t *testing.T) {
			again := fresh(kind)
			for range 200 {
				m := fresh(kind)
				random(r, m.ProtoReflect(), 4)
				checkAppend(t, m)
				b := official(t, m)
				checkUnmarshal(t, b, fresh(kind))
				checkUnmarshal(t, b, again)
			}
		})
	}
}

// TestOdd decodes what is rare or wrong.
func TestOdd(t *testing.T) {
	put := official(t, &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: 1})
	field := func(n protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	deep := func(n int) (txn []byte) {
		for range n {
			txn = field(2, field(4, txn))
		}
		return txn
	}
	for _, c := range []struct {
		name string
		m    proto.Message
		b    []byte
	}{
		{"a scalar twice", &pb.PutRequest{}, join(put, put, []byte("\x0a\x01x"))},
		{"a tag that is longer than it must be", &pb.PutRequest{}, []byte("\x8a\x00\x01x")},
		{"a length that is longer than it must be", &pb.PutRequest{}, []byte("\x0a\x81\x00x")},
		{"a boolean of 2", &pb.PutRequest{}, []byte("\x20\x02")},
		{"a boolean of 2⁶³", &pb.PutRequest{}, []byte("\x20\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")},
		{"an integer of more than 64 bits", &pb.PutRequest{}, []byte("\x18\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02")},
		{"an enum of more than 32 bits", &pb.RangeRequest{}, []byte("\x28\x81\x80\x80\x80\x80\x01")},
		{"another type of field", &pb.PutRequest{}, []byte("\x08\x01")},
		{"a field of 64 bits", &pb.PutRequest{}, []byte("\x19\x01\x02\x03\x04\x05\x06\x07\x08")},
		{"a group", &pb.PutRequest{}, []byte("\x0b\x08\x01\x0c")},
		{"a group without an end", &pb.PutRequest{}, []byte("\x0b\x08\x01")},
		{"the end of a group", &pb.PutRequest{}, []byte("\x0c")},
		{"field 0", &pb.PutRequest{}, []byte("\x02\x00")},
		{"a type that is none", &pb.PutRequest{}, []byte("\x0f\x00")},
		{"a tag at the end", &pb.PutRequest{}, []byte("\x0a")},
		{"bytes that are too few", &pb.PutRequest{}, []byte("\x0a\x02x")},
		{"a length beyond all", &pb.PutRequest{}, []byte("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01x")},
		{"an unknown field", &pb.PutRequest{}, join(put, field(99, []byte("x")))},
		{"a part twice", &pb.InternalRaftRequest{}, join(field(4, put), field(4, []byte("\x12\x01x")))},
		{"two parts", &pb.InternalRaftRequest{}, join(field(4, put), field(8, []byte("\x08\x01")))},
		{"a part not done by hand", &pb.InternalRaftRequest{}, join(field(4, put), field(1000, nil))},
		{"a header", &pb.InternalRaftRequest{}, join([]byte("\x08\x07"), field(100, []byte("\x08\x01\x12\x03abc\x18\x05")))},
		{"a header that is cut", &pb.InternalRaftRequest{}, []byte("\xa2")},
		{"half the tag of a header", &pb.InternalRaftRequest{}, []byte("\xa2\x01\x00")},
		{"a header of no text", &pb.InternalRaftRequest{}, field(100, []byte("\x12\x01\xff"))},
		{"an operation that is two", &pb.TxnRequest{}, field(2, join(field(2, put), field(1, []byte("\x0a\x01x"))))},
		{"an operation twice", &pb.TxnRequest{}, field(2, join(field(2, put), field(2, []byte("\x0a\x01x"))))},
		{"an operation that is none", &pb.TxnRequest{}, field(2, nil)},
		{"a comparison with two values", &pb.TxnRequest{}, field(1, []byte("\x20\x01\x3a\x01x\x28\x05"))},
		{"a comparison with nothing", &pb.TxnRequest{}, field(1, []byte("\x18\x01\x3a\x00"))},
		{"a comparison of a range", &pb.TxnRequest{}, field(1, join([]byte("\x1a\x01a\x20\x00"), field(64, []byte("b"))))},
		{"half the tag of a range's end", &pb.TxnRequest{}, field(1, []byte("\x82"))},
		{"a tag like that of a range's end", &pb.TxnRequest{}, field(1, []byte("\x82\x05\x01x"))},
		{"deep transactions", &pb.TxnRequest{}, deep(maxDepth)},
		{"deeper transactions", &pb.TxnRequest{}, deep(maxDepth + 1)},
		{"transactions that are too deep", &pb.TxnRequest{}, deep(protowire.DefaultRecursionLimit)},
		{"packed filters", &pb.WatchRequest{}, field(1, []byte("\x2a\x03\x00\x81\x01\x28\x01"))},
		{"packed filters that are cut", &pb.WatchRequest{}, field(1, []byte("\x2a\x01\x80"))},
		{"a progress request with a field", &pb.WatchRequest{}, field(3, []byte("\x08\x01"))},
		{"a request to watch, twice", &pb.WatchRequest{}, join(field(1, []byte("\x0a\x01x")), field(1, []byte("\x12\x01y")))},
		{"a request to watch, and to cancel", &pb.WatchRequest{}, join(field(1, []byte("\x0a\x01x")), field(2, []byte("\x08\x01")))},
	} {
		t.Run(c.name, func(t *testing.T) { checkUnmarshal(t, c.b, c.m) })
	}
}

// TestDeepCommand holds that a request which is as deep as it may be makes a command that can be decoded.
func TestDeepCommand(t *testing.T) {
	txn := []byte{2<<3 | length, 0} // two levels
	for range protowire.DefaultRecursionLimit/2 - 1 {
		txn = protowire.AppendBytes([]byte{2<<3 | length}, protowire.AppendBytes([]byte{4<<3 | length}, txn))
	}
	if err := Unmarshal(txn, &pb.TxnRequest{}); err != nil {
		t.Fatal(err)
	}
	command := AppendCommand(nil, nil, 6, txn)
	if proto.Unmarshal(command, &pb.InternalRaftRequest{}) == nil {
		t.Fatal("the request is not as deep as it may be")
	}
	if err := Unmarshal(command, &pb.InternalRaftRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := new(Decoder).Command(command); err != nil {
		t.Error(err)
	}
}

func TestAppendOdd(t *testing.T) {
	for name, m := range map[string]proto.Message{
		"no message":                    (*pb.PutRequest)(nil),
		"no command":                    (*pb.InternalRaftRequest)(nil),
		"no response":                   (*pb.WatchResponse)(nil),
		"elements that are nil":         &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{nil, {}, nil}},
		"operations that are nil":       &pb.TxnRequest{Compare: []*pb.Compare{nil}, Success: []*pb.RequestOp{nil, {}}},
		"an operation without content":  &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{}}, {Request: &pb.RequestOp_RequestTxn{}}}},
		"an operation's nil wrapper":    &pb.TxnRequest{Success: []*pb.RequestOp{{Request: (*pb.RequestOp_RequestPut)(nil)}}},
		"a response's nil wrapper":      &pb.TxnResponse{Responses: []*pb.ResponseOp{{Response: (*pb.ResponseOp_ResponseRange)(nil)}, nil}},
		"a comparison's nil wrapper":    &pb.TxnRequest{Compare: []*pb.Compare{{TargetUnion: (*pb.Compare_Value)(nil)}}},
		"a header that is not UTF-8":    &pb.InternalRaftRequest{Header: &pb.RequestHeader{Username: "\xff"}},
		"a reason that is not UTF-8":    &pb.WatchResponse{CancelReason: "\xff"},
		"an error that is not UTF-8":    &pb.LeaseGrantResponse{Error: "\xff"},
		"a part that is not for wire":   &pb.InternalRaftRequest{Put: &pb.PutRequest{}, AuthEnable: &pb.AuthEnableRequest{}},
		"checkpoints that are nil":      &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{nil, {ID: 1}}}},
		"a value that breaks the guess": &pb.TxnResponse{Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{PrevKv: &mvccpb.KeyValue{Value: make([]byte, 70_000)}}}}}},
	} {
		t.Run(name, func(t *testing.T) { checkAppend(t, m) })
	}
}

func TestAppendCommand(t *testing.T) {
	put := &pb.PutRequest{Key: []byte("k"), Value: make([]byte, 300)}
	for _, h := range []*pb.RequestHeader{nil, {}, {ID: 7, Username: "root", AuthRevision: 12}} {
		got := AppendCommand([]byte("x"), h, 4, official(t, put))
		want := append([]byte("x"), official(t, &pb.InternalRaftRequest{Header: h, Put: put})...)
		if !bytes.Equal(got, want) {
			t.Errorf("header %v:\n     got %x\nofficial %x", h, got, want)
		}
	}
}

// TestDecoder decodes commands of all kinds with one decoder, each after the others.
func TestDecoder(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var d Decoder
	for range 2000 {
		want := &pb.InternalRaftRequest{}
		random(r, want.ProtoReflect(), 4)
		parts := want.ProtoReflect().Descriptor().Fields()
		if r.IntN(4) > 0 { // usually there is one, of those done by hand
			keep := parts.Get(r.IntN(11))
			for i := range parts.Len() {
				if parts.Get(i) != keep {
					want.ProtoReflect().Clear(parts.Get(i))
				}
			}
		}
		got, err := d.Command(official(t, want))
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if _, err := d.Command([]byte("\x22\x01")); err == nil {
		t.Error("a command that is cut was decoded")
	}
}

// TestForgets requires that a transaction does not keep the bytes of a longer one that was decoded before.
func TestForgets(t *testing.T) {
	op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
	m := &pb.TxnRequest{}
	for _, n := range []int{3, 1} {
		b := official(t, &pb.TxnRequest{Success: []*pb.RequestOp{op, op, op}[:n], Compare: []*pb.Compare{{}, {}, {}}[:n]})
		if err := Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range m.Success[1:3] {
		if left != nil {
			t.Errorf("%v is kept", left)
		}
	}
	for _, left := range m.Compare[1:3] {
		if left != nil {
			t.Errorf("%v is kept", left)
		}
	}
}

// TestAllocations requires that the messages of most requests are decoded into used ones, and encoded into a buffer
// that is large enough, without memory.
func TestAllocations(t *testing.T) {
	put := &pb.PutRequest{Key: []byte("key"), Value: make([]byte, 256)}
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("key"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 17}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("key")}}}},
	}
	kv := &mvccpb.KeyValue{Key: []byte("key"), Value: make([]byte, 256), ModRevision: 5}
	header := &pb.ResponseHeader{ClusterId: math.MaxUint64, MemberId: math.MaxUint64, Revision: 1 << 40, RaftTerm: 9}
	buf := make([]byte, 0, 4096)
	for _, m := range []proto.Message{put, txn, &pb.LeaseGrantRequest{TTL: 5}, &pb.InternalRaftRequest{Txn: txn}} {
		b, into := official(t, m), fresh(m)
		if n := testing.AllocsPerRun(100, func() {
			if err := Unmarshal(b, into); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%T is decoded with %v allocations", m, n)
		}
	}
	for _, m := range []proto.Message{
		put, txn, &pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv, kv}}, &pb.PutResponse{Header: header},
		&pb.WatchResponse{Header: header, Events: []*mvccpb.Event{{Kv: kv, PrevKv: kv}}},
	} {
		if n := testing.AllocsPerRun(100, func() {
			if _, err := Append(buf, m); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%T is encoded with %v allocations", m, n)
		}
	}
}

// TestRequest decodes the requests of commands as they come from clients, with one decoder.
func TestRequest(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	var d Decoder
	fields := (&pb.InternalRaftRequest{}).ProtoReflect().Descriptor().Fields()
	for range 1000 {
		fd := fields.Get(r.IntN(fields.Len()))
		if fd.Message() == nil {
			continue
		}
		want := &pb.InternalRaftRequest{}
		m := want.ProtoReflect().Mutable(fd).Message()
		random(r, m, 4)
		got, err := d.Request(fd.Number(), official(t, m.Interface()))
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if _, err := d.Request(4, []byte("\x0a\x01")); err == nil {
		t.Error("a request that is cut was decoded")
	}
	// A request is not allowed what a command is.
	var txn []byte
	for range protowire.DefaultRecursionLimit / 2 {
		txn = protowire.AppendBytes([]byte{2<<3 | length}, protowire.AppendBytes([]byte{4<<3 | length}, txn))
	}
	if _, err := d.Request(6, txn); err == nil {
		t.Error("a request that is too deep was decoded")
	}
	if _, err := d.Command(AppendCommand(nil, nil, 6, txn)); err != nil {
		t.Error(err)
	}
}
