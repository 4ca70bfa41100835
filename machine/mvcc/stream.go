package mvcc

import (
	"context"
	"math"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// streamFirstLimit is the number of keys of a stream's first response.
const streamFirstLimit = 10

// streamHold is for how long a stream keeps what it reads from, so that a
// compaction takes nothing from it: the disk does not get that space back
// meanwhile.
const streamHold = 30 * time.Second

// RangeStream reads a range like Range and passes it to send in pieces of about
// Options.StreamChunkBytes. Only the last has header, count and more. All of
// them are of the revision at which the stream began. Where sending takes longer
// than streamHold, that revision can be compacted meanwhile, which ends the
// stream with ErrCompacted. It is for ranges in key order without filters.
func (s *Store) RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeStreamResponse) error) error {
	if err := s.read(); err != nil {
		return err
	}
	defer s.reading.RUnlock()
	h := &held{s: s}
	defer h.drop()
	r = proto.CloneOf(r)
	if r.CountOnly {
		resp, err := h.read(ctx, r)
		if err != nil {
			return err
		}
		return send(&pb.RangeStreamResponse{RangeResponse: response(h.rev, resp.Count, nil, false)})
	}
	left := r.Limit
	if left == 0 {
		left = math.MaxInt64
	}
	r.Limit = min(streamFirstLimit, left)
	var sent int64
	for {
		resp, err := h.read(ctx, r)
		if err != nil {
			return err
		}
		sent += int64(len(resp.Kvs))
		left -= int64(len(resp.Kvs))
		out := &pb.RangeResponse{Kvs: resp.Kvs}
		done := !resp.More || left == 0
		if resp.More {
			last := resp.Kvs[len(resp.Kvs)-1].Key
			r.Key = append(append(make([]byte, 0, len(last)+1), last...), 0)
		}
		if done {
			out.Header, out.More, out.Count = &pb.ResponseHeader{Revision: h.rev}, resp.More, sent
			if resp.More {
				rest, err := h.read(ctx, &pb.RangeRequest{
					Key: r.Key, RangeEnd: r.RangeEnd, Revision: r.Revision, CountOnly: true,
				})
				if err != nil {
					return err
				}
				out.Count += rest.Count
			}
		}
		if err := send(&pb.RangeStreamResponse{RangeResponse: out}); err != nil || done {
			return err
		}
		r.Limit = min(nextStreamLimit(r.Limit, proto.Size(resp), s.streamChunkBytes), left)
	}
}

// nextStreamLimit doubles or halves the number of keys per response where the
// last one was less than half or more than twice the size aimed at.
func nextStreamLimit(limit int64, size, aim int) int64 {
	switch {
	case size < aim/2:
		limit *= 2
	case size > aim*2:
		limit /= 2
	}
	return max(limit, 1)
}

// held is what a stream reads from: a state that is given back after streamHold, and
// taken anew when there is more to read.
type held struct {
	s   *Store
	rev int64 // of the store, when the stream began

	mu    sync.Mutex  // guards the fields below; not locked while something is sent
	st    *state      // nil if it was given back
	timer *time.Timer // gives it back
}

// read reads from the revision of r, that at which the stream began for 0, which it notes in r.
func (h *held) read(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.st == nil {
		st := h.s.pin()
		h.st, h.timer = &st, time.AfterFunc(streamHold, h.drop)
		if h.rev == 0 {
			h.rev = st.rev
		}
	}
	if r.Revision <= 0 {
		r.Revision = h.rev
	}
	return h.st.read(ctx, r, false)
}

func (h *held) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.st != nil {
		h.timer.Stop()
		h.st.release()
		h.st = nil
	}
}
