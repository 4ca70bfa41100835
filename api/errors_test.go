package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

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

// errorsByName are all errors that statusError tells apart.
var errorsByName = []struct {
	name string
	err  error
}{
	{"mvcc.ErrCompacted", mvcc.ErrCompacted},
	{"mvcc.ErrFutureRev", mvcc.ErrFutureRev},
	{"mvcc.ErrKeyNotFound", mvcc.ErrKeyNotFound},
	{"mvcc.ErrCorrupt", mvcc.ErrCorrupt},
	{"lease.ErrNotFound", lease.ErrNotFound},
	{"lease.ErrExists", lease.ErrExists},
	{"lease.ErrTTLTooLarge", lease.ErrTTLTooLarge},
	{"machine.ErrNoSpace", machine.ErrNoSpace},
	{"machine.ErrCorrupt", machine.ErrCorrupt},
	{"watch.ErrClosed", watch.ErrClosed},
	{"auth.ErrRootUserNotExist", auth.ErrRootUserNotExist},
	{"auth.ErrRootRoleNotExist", auth.ErrRootRoleNotExist},
	{"auth.ErrUserAlreadyExist", auth.ErrUserAlreadyExist},
	{"auth.ErrUserEmpty", auth.ErrUserEmpty},
	{"auth.ErrUserNotFound", auth.ErrUserNotFound},
	{"auth.ErrRoleAlreadyExist", auth.ErrRoleAlreadyExist},
	{"auth.ErrRoleNotFound", auth.ErrRoleNotFound},
	{"auth.ErrRoleEmpty", auth.ErrRoleEmpty},
	{"auth.ErrPermissionNotGiven", auth.ErrPermissionNotGiven},
	{"auth.ErrAuthFailed", auth.ErrAuthFailed},
	{"auth.ErrNoPasswordUser", auth.ErrNoPasswordUser},
	{"auth.ErrPermissionDenied", auth.ErrPermissionDenied},
	{"auth.ErrRoleNotGranted", auth.ErrRoleNotGranted},
	{"auth.ErrPermissionNotGranted", auth.ErrPermissionNotGranted},
	{"auth.ErrAuthNotEnabled", auth.ErrAuthNotEnabled},
	{"auth.ErrAuthOldRevision", auth.ErrAuthOldRevision},
	{"auth.ErrInvalidAuthMgmt", auth.ErrInvalidAuthMgmt},
	{"auth.ErrEnforcementUnsupported", auth.ErrEnforcementUnsupported},
	{"consensus.ErrTimeout", consensus.ErrTimeout},
	{"lessor.ErrNotRevoked", lessor.ErrNotRevoked},
	{"consensus.ErrStopped", consensus.ErrStopped},
	{"consensus.ErrNoLeader", consensus.ErrNoLeader},
	{"consensus.ErrTooManyRequests", consensus.ErrTooManyRequests},
	{"rpctypes.ErrBadLeaderTransferee", rpctypes.ErrBadLeaderTransferee},
	{"rpctypes.ErrGRPCNotLeader", rpctypes.ErrGRPCNotLeader},
	{"mvcc.ErrTooLarge", mvcc.ErrTooLarge},
	{"mvcc.ErrClosed", mvcc.ErrClosed},
	{"machine.ErrEntryFull", machine.ErrEntryFull},
	{"machine.ErrMemberExists", machine.ErrMemberExists},
	{"machine.ErrMemberNotFound", machine.ErrMemberNotFound},
	{"machine.ErrMemberRemoved", machine.ErrMemberRemoved},
	{"machine.ErrPeerURLExists", machine.ErrPeerURLExists},
	{"machine.ErrMemberNotLearner", machine.ErrMemberNotLearner},
	{"machine.ErrLastVoter", machine.ErrLastVoter},
	{"consensus.ErrNotLeader", consensus.ErrNotLeader},
	{"rpctypes.ErrMemberNotEnoughStarted", rpctypes.ErrMemberNotEnoughStarted},
	{"rpctypes.ErrUnhealthy", rpctypes.ErrUnhealthy},
	{"machine.ErrTooManyLearners", machine.ErrTooManyLearners},
	{"rpctypes.ErrMemberLearnerNotReady", rpctypes.ErrMemberLearnerNotReady},
	{"context.Canceled", context.Canceled},
	{"context.DeadlineExceeded", context.DeadlineExceeded},
	{"another", errors.New("something else")},
}

// The codes and texts are what clients of etcd match on. The file was written by hand from
// etcd 3.7's tables; a line in it changes only if etcd's answer does.
func TestStatusErrorGolden(t *testing.T) {
	want, err := os.ReadFile("testdata/errors.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, e := range errorsByName {
		st, ok := status.FromError(statusError(e.err))
		if !ok {
			t.Errorf("%s is not a status", e.name)
		}
		fmt.Fprintf(&got, "%s: %s: %s\n", e.name, st.Code(), st.Message())
	}
	if got.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestStatusErrorOfWrapped(t *testing.T) {
	for _, e := range errorsByName {
		if e.name == "another" {
			continue // its text is the answer
		}
		bare := status.Convert(statusError(e.err))
		for how, err := range map[string]error{
			"wrapped":       fmt.Errorf("while testing: %w", e.err),
			"wrapped twice": fmt.Errorf("outer: %w", fmt.Errorf("inner: %w", e.err)),
			"joined":        errors.Join(e.err, errors.New("another")),
		} {
			st := status.Convert(statusError(err))
			if e.name == "auth.ErrNoPasswordUser" {
				continue // etcd has no text of its own for it either
			}
			if st.Code() != bare.Code() || st.Message() != bare.Message() {
				t.Errorf("%s, %s: %v, want %v", e.name, how, st, bare)
			}
		}
	}
	if err := statusError(nil); err != nil {
		t.Errorf("no error became %v", err)
	}
}

// A client's library turns texts into errors by a table; what it has there must come with the
// code that it has there, but for the exceptions that etcd itself makes.
func TestStatusErrorIsKnownToClients(t *testing.T) {
	for _, e := range errorsByName {
		st := status.Convert(statusError(e.err))
		known, ok := rpctypes.Error(st.Err()).(rpctypes.EtcdError)
		if !ok || st.Code() == codes.Unknown {
			continue // etcd sends some as Unknown that have another code in the table
		}
		if known.Code() != st.Code() {
			t.Errorf("%s: code %s, clients expect %s", e.name, st.Code(), known.Code())
		}
	}
}

func TestProposalError(t *testing.T) {
	for _, tt := range []struct{ err, want error }{
		{context.Canceled, rpctypes.ErrGRPCCanceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), rpctypes.ErrGRPCTimeout},
		{mvcc.ErrCompacted, rpctypes.ErrGRPCCompacted},
		{consensus.ErrTimeout, rpctypes.ErrGRPCTimeout},
	} {
		if got := proposalError(tt.err); got.Error() != tt.want.Error() || status.Code(got) == codes.OK {
			t.Errorf("%v: got %v, want %v", tt.err, got, tt.want)
		}
	}
}
