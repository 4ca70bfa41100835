package mvcc

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/storage/engine"
)

// Close waits for a reader that has begun and turns away those that come later:
// the engine can be closed after it.
func TestCloseWaitsForReaders(t *testing.T) {
	eng, err := engine.Open(engine.Options{Dir: "db", Merger: Merger, FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	s, err := Open(eng, noLeases{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := eng.NewBatch()
	s.Begin(b)
	if _, err := s.Put(&pb.PutRequest{Key: []byte("k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	s.Complete()
	if err := errors.Join(eng.Commit(b), b.Close()); err != nil {
		t.Fatal(err)
	}
	s.Publish()
	reading, finish, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	answer := make(chan error, 1)
	r := &pb.RangeRequest{Key: []byte("k")}
	go func() { // ends when finish is closed
		answer <- s.RangeStream(t.Context(), r, func(*pb.RangeStreamResponse) error {
			select {
			case <-reading:
			default:
				close(reading)
			}
			<-finish
			return nil
		})
	}()
	<-reading
	go func() { // ends with the reader
		s.Close()
		close(closed)
	}()
	for { // until Close stands in the way
		if _, err := s.Range(t.Context(), r); errors.Is(err, ErrClosed) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-closed:
		t.Fatal("Close did not wait for the reader")
	default:
	}
	close(finish)
	if err := <-answer; err != nil {
		t.Fatalf("the reader: %v", err)
	}
	<-closed
	if _, _, _, err := s.HashKV(t.Context(), 0); !errors.Is(err, ErrClosed) {
		t.Errorf("HashKV after Close: %v", err)
	}
}
