package coterie

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/api"
	"github.com/coteriedb/coterie/consensus"
	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/peer"
)

// ErrRemoved says that this member has been removed from its cluster. Its data
// directory is of no further use.
var ErrRemoved = errors.New("coterie: this member has been permanently removed from its cluster: " +
	"to run it again, add it as a new member and start it with an empty data directory")

// removalDelay is how long a removed member goes on, so that who asked for the
// removal hears of it, and the others of what it has sent.
const removalDelay = time.Second

// events passes what the transport hears on to consensus. Until consensus runs,
// it is dropped: raft sends again. That this member has been removed is said only
// once, and kept; the machine may say it too.
type events struct {
	to      atomic.Pointer[consensus.Node]
	removed atomic.Bool
}

// passTo begins to pass events on.
func (e *events) passTo(c *consensus.Node) {
	e.to.Store(c)
	if e.removed.Load() {
		c.Fail(ErrRemoved)
	}
}

var _ peer.Handler = (*events)(nil)

// Receive implements peer.Handler.
func (e *events) Receive(m *pb.Message) {
	if c := e.to.Load(); c != nil {
		c.Receive(m)
	}
}

// Unreachable implements peer.Handler.
func (e *events) Unreachable(id uint64) {
	if c := e.to.Load(); c != nil {
		c.Unreachable(id)
	}
}

// Refused implements peer.Handler.
func (e *events) Refused(id uint64) {
	if c := e.to.Load(); c != nil {
		c.Gone(id)
	}
}

// SnapshotSent implements peer.Handler.
func (e *events) SnapshotSent(id uint64, ok bool) {
	if c := e.to.Load(); c != nil {
		c.SnapshotSent(id, ok)
	}
}

// Removed implements peer.Handler.
func (e *events) Removed() {
	e.removed.Store(true)
	if c := e.to.Load(); c != nil {
		c.Fail(ErrRemoved)
	}
}

// startPeers makes the transport to the other members.
func (n *Node) startPeers() (err error) {
	n.events = &events{}
	n.peers, err = peer.New(peer.Config{
		ClusterID:    n.data.ClusterID,
		MemberID:     n.data.MemberID,
		PeerURLs:     n.cfg.InitialAdvertisePeerURLs,
		Handler:      n.events,
		Snapshots:    snapshots{n},
		DialTLS:      n.cfg.peerDialTLS,
		ReadTimeout:  n.cfg.RaftReadTimeout,
		WriteTimeout: n.cfg.RaftWriteTimeout,
		Patience:     n.cfg.ElectionTimeout,
		SnapshotRate: n.cfg.SnapshotSendRate,
		Strained:     n.strain.high,
		Version:      Version,
		RoundTrip:    n.front.metrics.PeerRoundTrip,
		SendTook:     n.front.metrics.SnapshotSent,
		ReceiveTook:  n.front.metrics.SnapshotReceived,
		Logger:       n.log,
	})
	if err != nil {
		return err
	}
	n.handleCalls()
	n.updatePeers()
	return nil
}

// updatePeers tells the transport who the members are.
func (n *Node) updatePeers() {
	members := n.machine().Members
	var list []peer.Member
	for _, m := range members.List() {
		list = append(list, peer.Member{ID: m.ID, PeerURLs: m.PeerURLs})
	}
	n.peers.Update(list, func(id uint64) bool { return n.machine().Members.Removed(id) })
}

// membersChanged follows changes of the membership. It is called by the
// goroutine that applies.
func (n *Node) membersChanged(changes []machine.Change) {
	n.updatePeers()
	for _, c := range changes {
		n.log.Info("membership changed", zap.String("kind", string(c.Kind)), zap.String("member", fmt.Sprintf("%x", c.Member.ID)),
			zap.Strings("peer-urls", c.Member.PeerURLs), zap.Bool("learner", c.Member.IsLearner))
	}
	if n.machine().Members.Removed(n.data.MemberID) {
		time.AfterFunc(removalDelay, n.events.Removed) // harmless after Close
	}
}

// stateReplaced follows a snapshot that has been installed. It is called by the
// goroutine that applies.
func (n *Node) stateReplaced(m *machine.Machine) {
	n.lessor.Reset(m.Leases)
	n.updatePeers()
}

// connectedSince counts the members of a list that this one has been connected
// with since then, itself included.
func (n *Node) connectedSince(list []machine.Member, then time.Time) (count int) {
	for _, m := range list {
		if m.ID == n.data.MemberID {
			count++
		} else if t := n.peers.ActiveSince(m.ID); !t.IsZero() && t.Before(then) {
			count++
		}
	}
	return count
}

// peerTraffic tells metrics of the other members.
func (n *Node) peerTraffic() (traffic []api.PeerTraffic) {
	for _, s := range n.peers.Stats() {
		traffic = append(traffic, api.PeerTraffic{
			ID:                      s.ID,
			Active:                  !s.ActiveSince.IsZero(),
			Disconnects:             s.Disconnects,
			SentBytes:               s.SentBytes,
			ReceivedBytes:           s.ReceivedBytes,
			SendFailures:            s.SendFailures,
			ReceiveFailures:         s.ReceiveFailures,
			SnapshotsSent:           s.SnapshotsSent,
			SnapshotSendFailures:    s.SnapshotSendFailures,
			SnapshotsReceived:       s.SnapshotsReceived,
			SnapshotReceiveFailures: s.SnapshotReceiveFailures,
			SnapshotsSending:        s.SnapshotsSending,
			SnapshotsReceiving:      s.SnapshotsReceiving,
		})
	}
	return traffic
}

// callLeader asks the leader something, here or elsewhere.
func (n *Node) callLeader(ctx context.Context, method string, in []byte) ([]byte, error) {
	leader := n.consensus.Status().Leader
	if leader == 0 {
		return nil, consensus.ErrNoLeader
	}
	return n.peers.Call(ctx, leader, method, in)
}

// voters returns the members of a list that vote.
func voters(list []machine.Member) []machine.Member {
	return slices.DeleteFunc(slices.Clone(list), func(m machine.Member) bool { return m.IsLearner })
}
