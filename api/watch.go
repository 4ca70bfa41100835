package api

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/rpc"
)

// Responses encode themselves into the connection's buffer.
var _ rpc.Messages = (*watch.Responses)(nil)

type watchServer struct {
	s *Server
	pb.UnsafeWatchServer
}

// Watch implements pb.WatchServer: it carries requests to a stream of the machine's hub, and
// responses back. Responses are taken from the hub when the client has taken the ones before,
// so a slow client makes nothing wait and nothing pile up here.
func (ws watchServer) Watch(stream pb.Watch_WatchServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	watchers := ws.s.node.NewWatchStream()
	defer watchers.Close()
	// Next is not given ctx, since waiting for two things costs more than for one.
	stop := context.AfterFunc(ctx, watchers.Close)
	defer stop()

	// Ends with the stream, which ends with this handler; Server.Wait waits for it.
	ws.s.group.Go(func() {
		if err := takeWatchRequests(ctx, stream, watchers); !errors.Is(err, io.EOF) {
			cancel(err)
		} // else the client asks for nothing more and goes on listening
	})

	for {
		resps, err := watchers.Next(context.Background())
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return watchError(err)
		}
		resps.Identity = ws.s.identity()
		if err := stream.SendMsg(resps); err != nil {
			return err
		}
	}
}

// identity is what the headers of watch responses say of this member.
func (s *Server) identity() watch.Identity {
	return watch.Identity{ClusterID: s.cfg.ClusterID, MemberID: s.cfg.MemberID, Term: s.node.Status().Term}
}

// takeWatchRequests passes requests on until the client has no more, then returns why.
func takeWatchRequests(ctx context.Context, stream pb.Watch_WatchServer, watchers WatchStream) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if r.CreateRequest != nil {
				err = watchers.Create(ctx, r.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if r.CancelRequest != nil {
				err = watchers.Cancel(ctx, r.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			if r.ProgressRequest != nil {
				watchers.RequestProgress()
			}
		}
		if err != nil {
			return err
		}
	}
}

// watchError says why a stream ended. A client that went away is told so in etcd's words.
func watchError(err error) error {
	if errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return statusError(err)
}
