package oracle

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/tests/target"
)

// side is one of the two servers, or a member of the subject, with the clients that talk to it: clientv3, as users do, and the generated
// clients on the same connection for what clientv3 would not let through.
type side struct {
	server target.Server
	number int // among the members of a cluster
	dial   []grpc.DialOption

	cli         *clientv3.Client
	kv          pb.KVClient
	lease       pb.LeaseClient
	watch       pb.WatchClient
	maintenance pb.MaintenanceClient

	keepAlive       pb.Lease_LeaseKeepAliveClient // opened at first use
	cancelKeepAlive context.CancelFunc
}

func (s *side) connect(ctx context.Context) error {
	cli, err := target.Dial(ctx, s.server, s.dial...)
	if err != nil {
		return err
	}
	conn := cli.ActiveConnection()
	s.cli = cli
	s.kv = pb.NewKVClient(conn)
	s.lease = pb.NewLeaseClient(conn)
	s.watch = pb.NewWatchClient(conn)
	s.maintenance = pb.NewMaintenanceClient(conn)
	return nil
}

func (s *side) disconnect() error {
	if s == nil || s.cli == nil {
		return nil
	}
	s.dropKeepAlive()
	err := s.cli.Close()
	s.cli = nil
	if errors.Is(err, context.Canceled) {
		return nil // clientv3 reports that its own context has ended
	}
	return err
}

func (s *side) restart(ctx context.Context, how target.Stop) error {
	if err := s.disconnect(); err != nil {
		return err
	}
	if err := s.server.Restart(ctx, how); err != nil {
		return err
	}
	return s.connect(ctx)
}

// keepAliveOnce sends one renewal on the stream that stays open between renewals.
func (s *side) keepAliveOnce(ctx context.Context, req *pb.LeaseKeepAliveRequest) (*pb.LeaseKeepAliveResponse, error) {
	if s.keepAlive == nil {
		streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stream, err := s.lease.LeaseKeepAlive(streamCtx)
		if err != nil {
			cancel()
			return nil, err
		}
		s.keepAlive, s.cancelKeepAlive = stream, cancel
	}
	stop := context.AfterFunc(ctx, s.cancelKeepAlive)
	defer stop()
	err := s.keepAlive.Send(req)
	if err == nil {
		var resp *pb.LeaseKeepAliveResponse
		if resp, err = s.keepAlive.Recv(); err == nil {
			return resp, nil
		}
	}
	s.dropKeepAlive()
	return nil, err
}

func (s *side) dropKeepAlive() {
	if s.keepAlive != nil {
		s.cancelKeepAlive()
		s.keepAlive = nil
	}
}

// rangeStream reads a whole streamed range as one response. How the server cuts it into chunks is its own
// business, but only the last chunk may carry header, count and more.
func (s *side) rangeStream(ctx context.Context, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := s.kv.RangeStream(ctx, req)
	if err != nil {
		return nil, err
	}
	whole := &pb.RangeResponse{}
	for ended := false; ; {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return whole, nil
		}
		if err != nil {
			return nil, err
		}
		part := chunk.GetRangeResponse()
		if ended {
			return nil, errors.New("a chunk follows the one with the header")
		}
		ended = part.Header != nil
		if !ended && (part.More || part.Count != 0) {
			return nil, errors.New("a chunk without header has a count or more")
		}
		whole.Kvs = append(whole.Kvs, part.Kvs...)
		whole.Header, whole.More, whole.Count = part.Header, part.More, part.Count
	}
}
