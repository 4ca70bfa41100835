package coterie

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/peer"
)

const (
	// defaultHealthInterval is how long members must have been connected to count
	// as healthy in a change of the membership, as in etcd.
	defaultHealthInterval = 5 * time.Second
	// readyPercent is how much of the leader's log a learner must have to be
	// promoted, as in etcd.
	readyPercent = 90
)

// Members lists the members as api.Membership asks for it.
func (s *service) Members() []*pb.Member {
	var out []*pb.Member
	for _, m := range s.machine().Members.List() {
		out = append(out, apiMember(m))
	}
	return out
}

func apiMember(m machine.Member) *pb.Member {
	return &pb.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner}
}

// AddMember implements api.Membership.
func (s *service) AddMember(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error) {
	if s.cfg.StrictReconfigCheck {
		if err := s.mayAdd(learner); err != nil {
			return nil, nil, err
		}
	}
	m := machine.Member{ID: addedID(peerURLs, time.Now()), PeerURLs: peerURLs, IsLearner: learner}
	c := machine.Change{Kind: machine.AddMember, Member: m}
	if learner {
		c.MaxLearners = s.cfg.MaxLearners
	}
	if err := s.machine().Members.Check(&c); err != nil {
		return nil, nil, err
	}
	if learner && c.MaxLearners == 0 {
		return nil, nil, machine.ErrTooManyLearners
	}
	if err := s.proposeChange(ctx, c); err != nil {
		return nil, nil, err
	}
	return apiMember(m), s.Members(), nil
}

// mayAdd holds etcd's strict checks: with one more voter, those that have
// started must still be a majority, and so must the connected ones. A learner
// will be a voter, so it is refused too where members are not connected.
func (s *service) mayAdd(learner bool) error {
	vs := voters(s.machine().Members.List())
	started, quorum := countStarted(vs), (len(vs)+1)/2+1
	// One of two that has started is a cluster of one being restored.
	if !learner && started < quorum && !(started == 1 && len(vs) == 1) {
		return rpctypes.ErrMemberNotEnoughStarted
	}
	if len(vs) > 1 && s.connectedSince(vs, time.Now().Add(-s.cfg.healthInterval)) < quorum {
		return rpctypes.ErrUnhealthy
	}
	return nil
}

// RemoveMember implements api.Membership.
func (s *service) RemoveMember(ctx context.Context, id uint64) ([]*pb.Member, error) {
	m, known := s.machine().Members.Get(id)
	if known && !m.IsLearner && s.cfg.StrictReconfigCheck {
		if err := s.mayRemoveVoter(id); err != nil {
			return nil, err
		}
	}
	if id == s.data.MemberID {
		s.consensus.Retire(ctx) // so that the others need no election
	}
	return s.change(ctx, machine.RemoveMember, machine.Member{ID: id})
}

// mayRemoveVoter holds etcd's strict checks: those that stay and have started
// must be a majority of those that stay, and so must the connected ones, unless
// the one to be removed is down.
func (s *service) mayRemoveVoter(id uint64) error {
	vs := voters(s.machine().Members.List())
	rest := slices.DeleteFunc(slices.Clone(vs), func(m machine.Member) bool { return m.ID == id })
	if len(rest) == 0 || countStarted(rest) < len(rest)/2+1 {
		return rpctypes.ErrMemberNotEnoughStarted
	}
	if id != s.data.MemberID && s.peers.ActiveSince(id).IsZero() {
		return nil
	}
	if active := s.connectedSince(vs, time.Now().Add(-s.cfg.healthInterval)); active-1 < 1+(len(vs)-1)/2 {
		return rpctypes.ErrUnhealthy
	}
	return nil
}

// UpdateMember implements api.Membership.
func (s *service) UpdateMember(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error) {
	return s.change(ctx, machine.UpdateMember, machine.Member{ID: id, PeerURLs: peerURLs})
}

// PromoteMember implements api.Membership. The leader knows how far a learner is; it is asked again while there is
// none, or another one.
func (s *service) PromoteMember(ctx context.Context, id uint64) ([]*pb.Member, error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout(&s.cfg))
	defer cancel()
	for {
		again, err := s.promoteAtLeader(limited, id)
		if err == nil {
			break
		}
		if !again {
			return nil, err
		}
		select {
		case <-time.After(promoteRetry):
		case <-limited.Done():
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, consensus.ErrTimeout
		}
	}
	// The leader has applied it. This member has too when it answers a read.
	if err := s.readIndex(ctx); err != nil {
		return nil, err
	}
	return s.Members(), nil
}

// promoteRetry is how long is waited for a leader before it is asked again.
const promoteRetry = 100 * time.Millisecond

// promoteAtLeader has the leader promote a member, and tells whether a failure may be for want of one. What was asked for
// may have been done all the same: then the member is no learner any more.
func (s *service) promoteAtLeader(ctx context.Context, id uint64) (again bool, err error) {
	if err = s.promote(ctx, id); !errors.Is(err, consensus.ErrNotLeader) {
		return false, err
	}
	_, err = s.callLeader(ctx, callPromote, binary.BigEndian.AppendUint64(nil, id))
	if errors.As(err, new(*peer.CallError)) {
		err = calledError(err)
		return status.Convert(err).Message() == rpctypes.ErrorDesc(rpctypes.ErrGRPCNotLeader), err
	}
	return err != nil, err
}

// promote makes a learner a voter, if this member leads.
func (n *Node) promote(ctx context.Context, id uint64) (err error) {
	progress, err := n.consensus.Progress(ctx)
	if err != nil {
		return err
	}
	defer func() { n.front.metrics.Promoted(err) }()
	m, ok := n.machine().Members.Get(id)
	switch {
	case !ok:
		return machine.ErrMemberNotFound
	case !m.IsLearner:
		return machine.ErrMemberNotLearner
	}
	match := func(id uint64) uint64 {
		if i := slices.IndexFunc(progress, func(p consensus.Progress) bool { return p.ID == id }); i >= 0 {
			return progress[i].Match
		}
		return 0
	}
	if match(id)*100 < match(n.data.MemberID)*readyPercent {
		return rpctypes.ErrMemberLearnerNotReady
	}
	if n.cfg.StrictReconfigCheck {
		// It must have started too, and with it a majority of the voters to be.
		vs := append(voters(n.machine().Members.List()), m)
		if countStarted(vs) < len(vs)/2+1 {
			return rpctypes.ErrMemberNotEnoughStarted
		}
	}
	return n.proposeChange(ctx, machine.Change{Kind: machine.PromoteMember, Member: machine.Member{ID: id}})
}

// change proposes a change and returns the members when it has been applied.
func (s *service) change(ctx context.Context, kind machine.ChangeKind, m machine.Member) ([]*pb.Member, error) {
	c := machine.Change{Kind: kind, Member: m}
	if err := s.machine().Members.Check(&c); err != nil {
		return nil, err // what is wrong already need not go through the log
	}
	if err := s.proposeChange(ctx, c); err != nil {
		return nil, err
	}
	return s.Members(), nil
}

func (n *Node) proposeChange(ctx context.Context, c machine.Change) error {
	return await(ctx, func(done func(machine.Result)) { n.consensus.ProposeChange(&c, done) }).Err
}

// countStarted counts the members that have told their names.
func countStarted(list []machine.Member) (count int) {
	for _, m := range list {
		if m.Name != "" {
			count++
		}
	}
	return count
}

// addedID computes the id of a member that is added to a running cluster as
// etcd does: from its peer URLs and the time, so that the same URLs can be
// removed and added again.
func addedID(peerURLs []string, now time.Time) uint64 {
	urls := slices.Sorted(slices.Values(peerURLs))
	sum := sha1.Sum([]byte(strings.Join(urls, "") + fmt.Sprint(now.Unix())))
	return binary.BigEndian.Uint64(sum[:])
}

// MoveLeader implements api.Node.
func (s *service) MoveLeader(ctx context.Context, to uint64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*s.cfg.ElectionTimeout)
	defer cancel()
	if err := s.consensus.TransferLeadership(ctx, to); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")
		}
		return err
	}
	return nil
}
