package oracle

import (
	"context"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/tests/target"
)

// TestProgressNotifications compares the notifications that a watcher gets without asking, which come at an
// interval and therefore have no place in a sequence.
func TestProgressNotifications(t *testing.T) {
	if *flagEndpoint != "" {
		t.Logf("the interval of a server given by its endpoint is not known")
		return
	}
	ref, sub := notifications(t, etcd), notifications(t, subject())
	if !proto.Equal(ref, sub) {
		t.Errorf("the answers differ\nreference: %s\nsubject:   %s", show(ref), show(sub))
	}
}

// notifications returns the third progress notification of a server on which two watchers share a stream, one of
// them without wishing to be notified.
func notifications(t *testing.T, start Starter) *pb.WatchResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := startSide(ctx, start, target.Config{UnsafeNoFsync: true, WatchProgress: 200 * time.Millisecond}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.disconnect(); err != nil {
			t.Error(err)
		}
		if err := s.server.Close(); err != nil {
			t.Error(err)
		}
	}()
	call, err := s.watch.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []*pb.WatchCreateRequest{
		{WatchId: 5, Key: []byte("a")},
		{WatchId: 6, Key: []byte("a"), ProgressNotify: true},
	} {
		if err := call.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte("elsewhere")}); err != nil {
		t.Fatal(err)
	}
	for seen := 0; ; {
		resp, err := call.Recv()
		if err != nil {
			t.Fatalf("%s: %v", s.server.Name(), err)
		}
		if resp.Created {
			continue
		}
		if resp.WatchId != 6 || len(resp.Events) != 0 {
			t.Fatalf("%s: %s", s.server.Name(), show(resp))
		}
		if seen++; seen == 3 {
			normalise(resp)
			return resp
		}
	}
}
