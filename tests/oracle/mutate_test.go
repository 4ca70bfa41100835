package oracle

import (
	"context"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// mutation alters one response of one type, the first to which it applies after a few others.
type mutation struct {
	name  string
	alter func(proto.Message) bool // false if there was nothing to alter
}

// on makes a mutation of responses of one type.
func on[M proto.Message](name string, alter func(M) bool) mutation {
	return mutation{name: name, alter: func(m proto.Message) bool {
		typed, ok := m.(M)
		return ok && alter(typed)
	}}
}

func mutations() []mutation {
	return []mutation{
		on("put: header revision", func(r *pb.PutResponse) bool { r.Header.Revision++; return true }),
		on("put: header without member id", func(r *pb.PutResponse) bool { r.Header.MemberId = 0; return true }),
		on("put: previous value missing", func(r *pb.PutResponse) bool {
			had := r.PrevKv != nil
			r.PrevKv = nil
			return had
		}),
		on("range: count", func(r *pb.RangeResponse) bool { r.Count++; return true }),
		on("range: more", func(r *pb.RangeResponse) bool { r.More = !r.More; return true }),
		on("range: one key lost", func(r *pb.RangeResponse) bool {
			if len(r.Kvs) == 0 {
				return false
			}
			r.Kvs = r.Kvs[1:]
			return true
		}),
		on("range: order", func(r *pb.RangeResponse) bool {
			if len(r.Kvs) < 2 {
				return false
			}
			r.Kvs[0], r.Kvs[1] = r.Kvs[1], r.Kvs[0]
			return true
		}),
		on("range: version", func(r *pb.RangeResponse) bool {
			if len(r.Kvs) == 0 {
				return false
			}
			r.Kvs[0].Version++
			return true
		}),
		on("range stream: value", func(r *pb.RangeStreamResponse) bool {
			if len(r.RangeResponse.Kvs) == 0 {
				return false
			}
			r.RangeResponse.Kvs[0].Value = append(r.RangeResponse.Kvs[0].Value, 'x')
			return true
		}),
		on("delete: number", func(r *pb.DeleteRangeResponse) bool { r.Deleted++; return true }),
		on("txn: succeeded", func(r *pb.TxnResponse) bool { r.Succeeded = !r.Succeeded; return true }),
		on("txn: a response lost", func(r *pb.TxnResponse) bool {
			if len(r.Responses) == 0 {
				return false
			}
			r.Responses = r.Responses[:len(r.Responses)-1]
			return true
		}),
		on("hash", func(r *pb.HashKVResponse) bool { r.Hash ^= 1; return true }),
		on("lease grant: ttl", func(r *pb.LeaseGrantResponse) bool { r.TTL++; return true }),
		on("leases: one lost", func(r *pb.LeaseLeasesResponse) bool {
			if len(r.Leases) == 0 {
				return false
			}
			r.Leases = r.Leases[:len(r.Leases)-1]
			return true
		}),
		on("watch: created at another revision", func(r *pb.WatchResponse) bool {
			if r.Created {
				r.Header.Revision--
			}
			return r.Created
		}),
		on("watch: an event lost", func(r *pb.WatchResponse) bool {
			if len(r.Events) == 0 {
				return false
			}
			r.Events = r.Events[1:]
			if len(r.Events) == 0 {
				r.WatchId, r.Header.Revision = -1, 0 // what is left must not count as progress
			}
			return true
		}),
		on("watch: an event twice", func(r *pb.WatchResponse) bool {
			if len(r.Events) == 0 {
				return false
			}
			r.Events = append(r.Events, r.Events[len(r.Events)-1])
			return true
		}),
		on("watch: previous value missing", func(r *pb.WatchResponse) bool {
			for _, ev := range r.Events {
				if ev.PrevKv != nil {
					ev.PrevKv = nil
					return true
				}
			}
			return false
		}),
		on("watch: compact revision", func(r *pb.WatchResponse) bool {
			if r.CompactRevision != 0 {
				r.CompactRevision++
				return true
			}
			return false
		}),
	}
}

// mutator applies one mutation once to what a client receives.
type mutator struct {
	mutation mutation
	spare    atomic.Int64 // responses to leave as they are before the first alteration
	done     atomic.Bool
}

func (m *mutator) see(msg any) {
	p, ok := msg.(proto.Message)
	if !ok || m.done.Load() || m.spare.Add(-1) >= 0 {
		return
	}
	if m.mutation.alter(p) {
		m.done.Store(true)
	}
}

func (m *mutator) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, opts...)
			if err == nil {
				m.see(reply)
			}
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, method, opts...)
			return &mutatedStream{stream, m}, err
		}),
	}
}

type mutatedStream struct {
	grpc.ClientStream
	m *mutator
}

func (s *mutatedStream) RecvMsg(msg any) error {
	err := s.ClientStream.RecvMsg(msg)
	if err == nil {
		s.m.see(msg)
	}
	return err
}
