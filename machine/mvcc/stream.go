package mvcc

import (
	"context"
	"math"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// streamFirstLimit is the number of keys of a stream's first response.
const streamFirstLimit = 10

// RangeStream reads a range like Range and passes it to send in pieces of about
// Options.StreamChunkBytes. Only the last has header, count and more. All of
// them are of the revision at which the stream began, whatever is compacted
// meanwhile. It is for ranges in key order without filters.
func (s *Store) RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeStreamResponse) error) error {
	if err := s.read(); err != nil {
		return err
	}
	defer s.reading.RUnlock()
	st := s.pin()
	defer st.release()
	if r.CountOnly {
		resp, err := st.read(ctx, r, false)
		if err != nil {
			return err
		}
		return send(&pb.RangeStreamResponse{RangeResponse: response(st.rev, resp.Count, nil, false)})
	}
	left := r.Limit
	if left == 0 {
		left = math.MaxInt64
	}
	r = proto.CloneOf(r)
	r.Limit = min(streamFirstLimit, left)
	var sent int64
	for {
		resp, err := st.read(ctx, r, false)
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
			out.Header, out.More, out.Count = resp.Header, resp.More, sent
			if resp.More {
				rest, err := st.read(ctx, &pb.RangeRequest{
					Key: r.Key, RangeEnd: r.RangeEnd, Revision: r.Revision, CountOnly: true,
				}, false)
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
