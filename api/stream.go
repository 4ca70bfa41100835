package api

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"

	"github.com/coteriedb/coterie/rpc"
)

// streams are the streams in progress: those that the server must be able to end.
type streams struct {
	mu sync.Mutex
	// open holds the streams, and whether they require a leader. Guarded by mu.
	open map[*stream]bool
	// ended is why no stream may begin. Guarded by mu.
	ended error
}

func (ss *streams) init() { ss.open = map[*stream]bool{} }

// add makes st one of the streams, until remove.
func (ss *streams) add(st *stream, needsLeader bool) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.ended != nil {
		return ss.ended
	}
	ss.open[st] = needsLeader
	return nil
}

func (ss *streams) remove(st *stream) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	delete(ss.open, st)
}

// close ends all streams, and those that try to begin later, with err.
func (ss *streams) close(err error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.ended = err
	for st := range ss.open {
		st.cancel(err)
	}
}

// loseLeader ends the streams that require a leader.
func (ss *streams) loseLeader() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for st, needsLeader := range ss.open {
		if needsLeader {
			st.cancel(rpctypes.ErrGRPCNoLeader)
		}
	}
}

// stream is a client's stream whose context the server can end, with a cause, and whose
// messages are counted.
type stream struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelCauseFunc
	calls  *callMetrics
}

// Context implements grpc.ServerStream.
func (st *stream) Context() context.Context { return st.ctx }

// SendMsg implements grpc.ServerStream. rpc.Messages are sent one after the other.
func (st *stream) SendMsg(m any) error {
	if all, ok := m.(rpc.Messages); ok {
		return st.sendAll(all)
	}
	err := st.ServerStream.SendMsg(m)
	if err == nil {
		st.calls.sent.Inc()
	}
	return err
}

func (st *stream) sendAll(all rpc.Messages) error {
	err := rpc.SendMessages(st.ServerStream, all)
	if err == nil {
		st.calls.sent.Add(float64(all.Len()))
	}
	return err
}

// RecvMsg implements grpc.ServerStream.
func (st *stream) RecvMsg(m any) error {
	err := st.ServerStream.RecvMsg(m)
	if err == nil {
		st.calls.received.Inc()
	}
	return err
}

// take has messages taken where they are read; see rpc.TakeMessages.
func (st *stream) take(f func(message []byte) bool) {
	rpc.TakeMessages(st.ServerStream, func(message []byte) bool {
		taken := f(message)
		if taken {
			st.calls.received.Inc()
		}
		return taken
	})
}

// patience is for how many election timeouts a stream that requires a leader may go without.
// Ending streams makes all clients connect anew, so it is not done at every election.
const patience = 3

// watchLeader ends streams that require a leader when there is none for long.
func (s *Server) watchLeader() {
	tick := time.NewTicker(s.cfg.ElectionTimeout)
	defer tick.Stop()
	without := 0
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
		}
		if s.node.Status().Leader != 0 {
			without = 0
			continue
		}
		if without++; without >= patience {
			s.streams.loseLeader()
		}
	}
}
