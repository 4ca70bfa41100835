package api

import (
	"context"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/watch"
)

// Node is what this package needs of a running member. What the accessors return belongs to the
// machine of this moment, which is replaced whole when a snapshot is installed: it is asked for
// again for each request.
type Node interface {
	Membership

	// Propose replicates one command and returns what the machine answered, or an error of
	// consensus. When ctx ends first the error is ctx's and the command may still take effect.
	Propose(ctx context.Context, r *pb.InternalRaftRequest) machine.Result
	// ProposeCommand is Propose for an encoded command, which must not change until done is
	// called with the result: once, from a goroutine that must not be held up.
	ProposeCommand(command []byte, done func(machine.Result))
	// ProposeCommandHere is ProposeCommand for a caller that can wait for about as long as a quick
	// disk takes: the command may have been answered when it returns. If it takes longer, late is
	// called, from a goroutine that must not be held up.
	ProposeCommandHere(command []byte, done func(machine.Result), late func())
	// ReadIndex returns when local state includes all that was acknowledged, by any member,
	// before the call.
	ReadIndex(ctx context.Context) error
	// UpToDate tells, at once, that ReadIndex would find nothing to wait for. False says nothing.
	UpToDate() bool
	// ReadIndexAsync calls done where ReadIndex would return: once, from a goroutine that must
	// not be held up.
	ReadIndexAsync(done func(error))
	// Status is called for every response and must be cheap.
	Status() Status
	// DBSize is the space that data takes on disk.
	DBSize() int64

	KV() KV
	NewWatchStream() WatchStream
	Lessor() Lessor
	// LeaseKeys returns the keys attached to a lease, sorted.
	LeaseKeys(id int64) []string
	Alarms() []*pb.AlarmMember
	Auth() Auth

	// Defragment gives back space where that is possible without holding anything up.
	Defragment(ctx context.Context) error
	// Snapshot opens a copy of the data in the format of etcd's snapshot files.
	Snapshot(ctx context.Context) (Snapshot, error)
	// MoveLeader passes leadership to another voting member.
	MoveLeader(ctx context.Context, to uint64) error
}

// Status is a member's view of its cluster at an instant.
type Status struct {
	// Leader is 0 if none is known.
	Leader, Term, Committed, Applied uint64
	IsLearner                        bool
}

// Membership is the member list and its changes. The changes return the new list.
type Membership interface {
	Members() []*pb.Member
	AddMember(ctx context.Context, peerURLs []string, learner bool) (added *pb.Member, all []*pb.Member, err error)
	RemoveMember(ctx context.Context, id uint64) ([]*pb.Member, error)
	UpdateMember(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error)
	PromoteMember(ctx context.Context, id uint64) ([]*pb.Member, error)
}

// KV is the read side of the store. Of response headers it fills the revision.
type KV interface {
	Revision() int64
	CompactRevision() int64
	// SizeInUse is the size of the retained history in bytes. Called for every write, must be
	// cheap.
	SizeInUse() int64
	Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error)
	RangeStream(ctx context.Context, r *pb.RangeRequest, send func(*pb.RangeStreamResponse) error) error
	ReadTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error)
	Hash(ctx context.Context) (uint32, error)
	HashKV(ctx context.Context, rev int64) (hash uint32, hashRev, compactRev int64, err error)
}

// Lessor is the leader's clock of the leases, here or on another member.
type Lessor interface {
	// Renew starts a lease's time anew and returns it in seconds.
	Renew(ctx context.Context, id int64) (ttl int64, err error)
	// RenewNow is Renew if that takes no waiting; else ok is false.
	RenewNow(id int64) (ttl int64, ok bool)
	// TimeToLive returns a lease's time as granted and what is left of it, in seconds.
	TimeToLive(ctx context.Context, id int64) (granted, remaining int64, err error)
	// Leases returns the ids of all leases, those that expire first in front.
	Leases() []int64
}

// WatchStream is the server side of one watch stream. Next is called from one goroutine, the
// other methods from another.
type WatchStream interface {
	// Create and Cancel wait while the client leaves too many answers unread.
	Create(ctx context.Context, r *pb.WatchCreateRequest) error
	Cancel(ctx context.Context, id int64) error
	RequestProgress()
	// Next waits for the next responses, which are valid until it is called again. Their
	// identity is left to be filled in.
	Next(ctx context.Context) (*watch.Responses, error)
	Close()
}

// Auth is what Authenticate needs of the authentication store.
type Auth interface {
	// CheckPassword returns the revision of the store at which the password was right.
	CheckPassword(name, password string) (revision uint64, err error)
	Revision() uint64
}

// Snapshot is a snapshot being read: Size bytes, of which the last 32 are the SHA-256 sum of
// the others.
type Snapshot struct {
	io.ReadCloser
	Size int64
}
