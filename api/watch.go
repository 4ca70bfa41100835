package api

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

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
	watch := ws.s.node.NewWatchStream()
	defer watch.Close()

	// Ends with the stream, which ends with this handler; Server.Wait waits for it.
	ws.s.group.Go(func() {
		if err := takeWatchRequests(ctx, stream, watch); !errors.Is(err, io.EOF) {
			cancel(err)
		} // else the client asks for nothing more and goes on listening
	})

	for {
		resp, err := watch.Next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return watchError(err)
		}
		resp.Header = ws.s.identify(resp.Header)
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

// takeWatchRequests passes requests on until the client has no more, then returns why.
func takeWatchRequests(ctx context.Context, stream pb.Watch_WatchServer, watch WatchStream) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			if r.CreateRequest != nil {
				err = watch.Create(ctx, r.CreateRequest)
			}
		case *pb.WatchRequest_CancelRequest:
			if r.CancelRequest != nil {
				err = watch.Cancel(ctx, r.CancelRequest.WatchId)
			}
		case *pb.WatchRequest_ProgressRequest:
			if r.ProgressRequest != nil {
				watch.RequestProgress()
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
