package guard

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"
)

// look is what all members said of one revision.
type look struct {
	local Hash
	peers []PeerHash
	// newest and compacted are this member's revisions when it had applied all
	// that the others had when they answered.
	newest, compacted int64
}

// look asks all members about a revision, this member's newest for 0.
func (g *Guard) look(ctx context.Context, rev int64) (*look, error) {
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	l := &look{}
	var err error
	if l.local, err = g.m.Local(ctx, rev); err != nil {
		return nil, fmt.Errorf("hash the data of this member: %w", err)
	}
	select {
	case <-g.o.Clock.After(g.o.Pause):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	l.peers = g.ask(ctx, l.local.HashRevision, g.o.Timeout/2) // which leaves time to catch up with them
	if err := g.m.Linearize(ctx); err != nil {
		return nil, fmt.Errorf("catch up with the other members: %w", err)
	}
	l.newest, l.compacted = g.m.Revisions()
	return l, nil
}

// ask asks the other members, for no longer than patience. Who hangs is then as one that is down.
func (g *Guard) ask(ctx context.Context, rev int64, patience time.Duration) []PeerHash {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	all := g.m.Peers(ctx, rev)
	for _, p := range all {
		if errors.Is(p.Err, context.DeadlineExceeded) {
			g.o.Logger.Warn("a member did not tell the hash of its data in time", zap.String("member", name(p.ID)), zap.Duration("time", patience))
		}
	}
	return all
}

// comparable reports whether h is of the same history as the local hash.
func (l *look) comparable(h Hash) bool {
	return h.HashRevision == l.local.HashRevision && h.CompactRevision == l.local.CompactRevision
}

// ahead reports whether a member had a revision that was never committed, as far
// as this member knows. Whoever has applied more has applied something else.
func (l *look) ahead(h Hash) bool {
	return h.Revision > l.newest || h.CompactRevision > l.compacted
}

// verdict is what a look shows.
type verdict struct {
	// suspects are the members with wrong data, in the order of ids.
	suspects []uint64
	// majority is set if more than half of the members say otherwise.
	majority bool
	// missing is the number of members that could not be compared.
	missing int
}

// certain reports whether more answers would not change the verdict.
func (v verdict) certain() bool { return v.majority || v.missing == 0 }

// confirms reports whether v accuses the same members as the look before.
func (v verdict) confirms(before verdict) bool { return slices.Equal(v.suspects, before.suspects) }

// judge finds the members that differ, as seen by the member self.
func (l *look) judge(self uint64) verdict {
	var v verdict
	var ahead []uint64
	groups := map[uint32][]uint64{l.local.Hash: {self}}
	for _, p := range l.peers {
		switch {
		case p.Err != nil:
			v.missing++
		case l.ahead(p.Hash):
			ahead = append(ahead, p.ID)
		case !l.comparable(p.Hash):
			v.missing++
		default:
			groups[p.Hash.Hash] = append(groups[p.Hash.Hash], p.ID)
		}
	}
	isMajority := func(ids []uint64) bool { return len(ids) > (len(l.peers)+1)/2 }
	if isMajority(ahead) {
		v.majority, v.suspects = true, []uint64{self} // which has missed what they applied
		return v
	}
	right := l.local.Hash
	for hash, ids := range groups {
		if isMajority(ids) {
			v.majority, right = true, hash // at most one is
		}
	}
	v.suspects = ahead
	for hash, ids := range groups {
		if hash != right {
			v.suspects = append(v.suspects, ids...)
		}
	}
	slices.Sort(v.suspects)
	return v
}

// fields describe a look and its verdict in the log.
func (l *look) fields(v verdict) []zap.Field {
	answers := make([]string, len(l.peers))
	for i, p := range l.peers {
		answers[i] = p.String()
	}
	suspects := make([]string, len(v.suspects))
	for i, id := range v.suspects {
		suspects[i] = name(id)
	}
	return []zap.Field{
		zap.Strings("different", suspects),
		zap.Bool("by-majority", v.majority),
		zap.Int64("revision", l.local.HashRevision),
		zap.Int64("compact-revision", l.local.CompactRevision),
		zap.String("local-hash", fmt.Sprintf("%08x", l.local.Hash)),
		zap.Strings("peers", answers),
	}
}

// String is for the log.
func (p PeerHash) String() string {
	if p.Err != nil {
		return fmt.Sprintf("%s: %v", name(p.ID), p.Err)
	}
	return fmt.Sprintf("%s: hash %08x of revision %d above %d, newest revision %d",
		name(p.ID), p.Hash.Hash, p.Hash.HashRevision, p.Hash.CompactRevision, p.Hash.Revision)
}

// name writes a member's id as the tools do.
func name(id uint64) string { return fmt.Sprintf("%x", id) }
