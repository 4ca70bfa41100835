package api

import (
	"context"
	"errors"
	"io"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/wire"
)

// LeaseKeepAlive implements pb.LeaseServer. Keep-alives of one stream are answered in order. One
// that takes no waiting is answered where it is read, if the transport can do that; the others by
// the goroutine that receives them: handing each over would cost as much as answering it. The
// handler only waits for the end, which nothing but its return brings to a receive.
func (ls leaseServer) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	ctx := stream.Context()
	k := &keepAlives{s: ls.s, stream: stream, ctx: ctx}
	if g, ok := stream.(*grpc.GenericServerStream[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]); ok {
		k.source, _ = g.ServerStream.(messageSource)
	}
	k.resp.Header = &pb.ResponseHeader{}
	ended := make(chan error, 1)
	// Ends with the stream, which ends with this handler; Server.Wait waits for it.
	ls.s.group.Go(func() { ended <- k.run() })
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		k.stop()
		return statusError(context.Cause(ctx))
	}
}

// keepAlives is one client's stream of keep-alives.
type keepAlives struct {
	s      *Server
	stream pb.Lease_LeaseKeepAliveServer
	source messageSource   // the same; may be nil
	ctx    context.Context // of the stream

	req  pb.LeaseKeepAliveRequest
	resp keepAliveResponse // used again: a message is encoded when it has been sent

	// answering is held while a keep-alive is answered: nothing is sent when the handler has
	// returned.
	answering sync.Mutex
	stopped   bool // guarded by answering
}

// messageSource is what stream adds to a grpc.ServerStream.
type messageSource interface {
	take(f func(message []byte) bool)
}

// run answers keep-alives until the client has no more.
func (k *keepAlives) run() error {
	for {
		if k.source != nil {
			k.source.take(k.answerNow)
		}
		if err := k.stream.RecvMsg(&k.req); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return statusError(err)
		}
		if err := k.answer(); err != nil {
			return err
		}
	}
}

// answerNow answers a keep-alive if that takes no waiting.
func (k *keepAlives) answerNow(message []byte) bool {
	if wire.Unmarshal(message, &k.req) != nil {
		return false // whoever receives it finds out, too
	}
	k.answering.Lock()
	defer k.answering.Unlock()
	if k.stopped {
		return false
	}
	k.begin()
	var ok bool
	if k.resp.TTL, ok = k.s.node.Lessor().RenewNow(k.req.ID); !ok {
		return false
	}
	_ = k.stream.SendMsg(&k.resp) // receiving tells why the stream has ended
	return true
}

// begin begins the response.
func (k *keepAlives) begin() {
	k.resp.ID = k.req.ID
	// The header is made before the lease is renewed: its revision must not be one at which the
	// lease, renewed now, has been revoked already.
	k.resp.Header.Revision = 0
	k.s.complete(k.resp.Header)
}

func (k *keepAlives) answer() error {
	k.answering.Lock()
	defer k.answering.Unlock()
	if k.stopped {
		return context.Cause(k.ctx)
	}
	k.begin()
	err := k.s.onLeader(k.ctx, k.renew)
	if errors.Is(err, lease.ErrNotFound) {
		k.resp.TTL = 0 // how a client learns that its lease is gone
		err = nil
	}
	if err != nil {
		return err
	}
	return k.stream.SendMsg(&k.resp)
}

func (k *keepAlives) renew() (err error) {
	k.resp.TTL, err = k.s.node.Lessor().Renew(k.ctx, k.req.ID)
	return err
}

// stop returns when nothing is being answered, and nothing will be.
func (k *keepAlives) stop() {
	k.answering.Lock()
	defer k.answering.Unlock()
	k.stopped = true
}

// keepAliveResponse encodes itself.
type keepAliveResponse struct{ pb.LeaseKeepAliveResponse }

// AppendMessage implements rpc.Appender.
func (r *keepAliveResponse) AppendMessage(dst []byte) ([]byte, error) {
	return wire.Append(dst, &r.LeaseKeepAliveResponse)
}
