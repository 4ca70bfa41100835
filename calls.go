package coterie

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/peer"
)

// The calls between members: what only the leader can answer, or each for itself.
const callPromote = "member/promote" // an id, 8 bytes big-endian; no answer

// handleCalls sets what this member answers.
func (n *Node) handleCalls() {
	n.peers.Handle(lessor.MethodRenew, lessor.ServeRenew(n.lessor))
	n.peers.Handle(lessor.MethodTimeToLive, lessor.ServeTimeToLive(n.lessor))
	n.peers.Handle(callHash, hashes{n}.serve)
	n.peers.Handle(callPromote, func(ctx context.Context, in []byte) ([]byte, error) {
		if len(in) != 8 {
			return nil, fmt.Errorf("%s: %d bytes instead of 8", callPromote, len(in))
		}
		return nil, callError(n.promote(ctx, binary.BigEndian.Uint64(in)))
	})
}

// callError carries an error to the member that called, as a client would see it.
func callError(err error) error {
	if err == nil {
		return nil
	}
	st := status.Convert(api.StatusError(err))
	return &peer.CallError{Code: int(st.Code()), Message: st.Message()}
}

// calledError turns what another member has answered into what a client of this
// one is told.
func calledError(err error) error {
	var called *peer.CallError
	if errors.As(err, &called) {
		return status.Error(codes.Code(called.Code), called.Message)
	}
	return err
}
