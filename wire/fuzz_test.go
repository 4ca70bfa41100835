package wire

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// seed adds encodings of all kinds of messages.
func seed(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for kind, m := range messages {
		for range 3 {
			m := fresh(m)
			random(r, m.ProtoReflect(), 3)
			if b := official(f, m); len(b) < 2000 {
				f.Add(byte(kind), b)
			}
		}
		f.Add(byte(kind), []byte("\x0a\x03key\x12\x05value"))
	}
}

// FuzzUnmarshal decodes any bytes, into a new message and into one that has been used, as the official codec does.
func FuzzUnmarshal(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		m := messages[int(kind)%len(messages)]
		checkUnmarshal(t, b, fresh(m))
		used := fresh(m)
		random(rand.New(rand.NewPCG(7, uint64(len(b)))), used.ProtoReflect(), 3)
		checkUnmarshal(t, official(t, used), used)
		checkUnmarshal(t, b, used)
	})
}

// FuzzAppend encodes what can be decoded as the official codec does.
func FuzzAppend(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		m := fresh(messages[int(kind)%len(messages)])
		if proto.Unmarshal(b, m) == nil {
			checkAppend(t, m)
		}
	})
}

// FuzzCommand decodes any bytes as a request, makes a command of those that are one, and decodes it.
func FuzzCommand(f *testing.F) {
	f.Add(byte(0), []byte("\x0a\x03key"))
	f.Add(byte(1), []byte("\x0a\x03key\x12\x05value\x98\x06\x01"))
	f.Add(byte(3), []byte("\x12\x02\x12\x00"))
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		m := fresh(messages[kind%4]) // fields 3 to 6 of a command
		officialErr := proto.Unmarshal(b, m)
		want := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: uint64(len(b))}}
		field := want.ProtoReflect().Descriptor().Fields().ByNumber(3 + protowire.Number(kind%4))
		want.ProtoReflect().Set(field, protoreflect.ValueOfMessage(m.ProtoReflect()))
		var d Decoder
		if _, err := d.Request(field.Number(), bytes.Clone(b)); fmt.Sprint(err) != fmt.Sprint(officialErr) {
			t.Fatalf("%x: error %v, official %v", b, err, officialErr)
		}
		if officialErr != nil {
			return
		}
		got, err := d.Request(field.Number(), bytes.Clone(b)) // again: with what the first time left
		if err != nil {
			t.Fatal(err)
		}
		if got.Header = want.Header; !proto.Equal(got, want) {
			t.Fatalf("%x:\n got %v\nwant %v", b, got, want)
		}
		got, err = d.Command(AppendCommand(nil, want.Header, field.Number(), b))
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("%x:\n got %v\nwant %v", b, got, want)
		}
	})
}
