package api

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/lessor"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/lease"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
)

var errNotEnoughStarted = status.Error(codes.Unknown, rpctypes.ErrMemberNotEnoughStarted.Error())

// known says how the errors of the packages below look to a client: code and text are etcd's.
var known = []struct{ err, status error }{
	{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{mvcc.ErrFutureRev, rpctypes.ErrGRPCFutureRev},
	{mvcc.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{mvcc.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
	{mvcc.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{machine.ErrEntryFull, status.Error(codes.Unknown, rpctypes.ErrTooManyRequests.Error())}, // none of it has happened: a client asks again
	{mvcc.ErrClosed, rpctypes.ErrGRPCStopped},                                                // the state is being replaced by a snapshot: a client asks again

	{lease.ErrNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{lease.ErrExists, rpctypes.ErrGRPCLeaseExist},
	{lease.ErrTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},

	{machine.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{machine.ErrCorrupt, rpctypes.ErrGRPCCorrupt},
	{machine.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{machine.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{machine.ErrMemberRemoved, rpctypes.ErrGRPCMemberNotFound},
	{machine.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{machine.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
	{machine.ErrMemberNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	// etcd sends this one with the code Unknown too.
	{machine.ErrLastVoter, errNotEnoughStarted},
	{rpctypes.ErrMemberNotEnoughStarted, errNotEnoughStarted},
	{watch.ErrClosed, rpctypes.ErrGRPCStopped}, // a client resumes its watchers elsewhere, or later

	{auth.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
	{auth.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
	{auth.ErrUserAlreadyExist, rpctypes.ErrGRPCUserAlreadyExist},
	{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{auth.ErrRoleAlreadyExist, rpctypes.ErrGRPCRoleAlreadyExist},
	{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{auth.ErrAuthFailed, rpctypes.ErrGRPCAuthFailed},
	{auth.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
	{auth.ErrPermissionDenied, rpctypes.ErrGRPCPermissionDenied},
	{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{auth.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{auth.ErrAuthNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
	{auth.ErrAuthOldRevision, rpctypes.ErrGRPCAuthOldRevision},
	{auth.ErrInvalidAuthMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
	{auth.ErrEnforcementUnsupported, status.Error(codes.Unimplemented, auth.ErrEnforcementUnsupported.Error())},

	{consensus.ErrTimeout, rpctypes.ErrGRPCTimeout},
	{lessor.ErrNotRevoked, rpctypes.ErrGRPCTimeout},
	{consensus.ErrStopped, rpctypes.ErrGRPCStopped},
	{consensus.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{consensus.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	// etcd sends this one with the code Unknown; its clients know it by the text.
	{consensus.ErrTooManyRequests, status.Error(codes.Unknown, rpctypes.ErrTooManyRequests.Error())},
}

// StatusError turns the error of a layer below into the one that clients get, for a member that
// answers another member's client.
func StatusError(err error) error { return statusError(err) }

// statusError turns any error into the one that the client gets. It is the only place that
// does. An error that has been wrapped on its way is answered like the bare one.
func statusError(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range known {
		if errors.Is(err, k.err) {
			return k.status
		}
	}
	var st interface{ GRPCStatus() *status.Status }
	if errors.As(err, &st) {
		return st.GRPCStatus().Err()
	}
	var etcd rpctypes.EtcdError
	if errors.As(err, &etcd) {
		return status.Error(etcd.Code(), etcd.Error())
	}
	switch {
	case errors.Is(err, context.Canceled):
		return status.FromContextError(context.Canceled).Err()
	case errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	return status.Error(codes.Unknown, err.Error())
}

// proposalError is statusError for what Propose returned: there the end of the client's context
// means that the outcome is not known, which etcd says in its own words.
func proposalError(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return rpctypes.ErrGRPCCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return rpctypes.ErrGRPCTimeout
	}
	return statusError(err)
}
