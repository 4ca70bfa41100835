package guard

import (
	"context"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
)

// A start waits for others' hashes as long as they should need when this member's own took that long.
const (
	slowness      = 4
	leastPatience = 3 * time.Second
)

// CheckInitial compares this member's data with that of the others before it
// serves, at its newest revision. Members that cannot be compared are passed
// over: they may be starting, too. An error of another kind than *DifferentError
// says that this member's own data could not be read.
func (g *Guard) CheckInitial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.o.Timeout)
	defer cancel()
	began := time.Now()
	local, err := g.m.Local(ctx, 0)
	if err != nil {
		return fmt.Errorf("hash the data of this member: %w", err)
	}
	l := &look{local: local, peers: g.ask(ctx, local.HashRevision, min(slowness*time.Since(began)+leastPatience, g.o.Timeout/2))}
	e := &DifferentError{Member: g.o.ID, Hash: local, Members: len(l.peers) + 1}
	compared := 0
	for _, p := range l.peers {
		switch {
		case p.Err != nil || !l.comparable(p.Hash):
			g.o.Logger.Info("the data of a member cannot be compared at the start", zap.Stringer("peer", p))
			continue
		case p.Hash.Hash != local.Hash:
			e.Different = append(e.Different, p)
		}
		compared++
	}
	if len(e.Different) > 0 {
		e.Same = compared - len(e.Different)
		return e
	}
	g.o.Logger.Info("compared the data of this member with the others'", zap.Int("members", compared),
		zap.Int64("revision", local.HashRevision), zap.Int64("compact-revision", local.CompactRevision))
	return nil
}

// DifferentError refuses a start: the member's data are not those of others.
type DifferentError struct {
	Member uint64
	Hash   Hash
	// Different are the members with other data, and Same the number of those
	// with the same, of Members in all.
	Different     []PeerHash
	Same, Members int
}

// Error names the members and what to do.
func (e *DifferentError) Error() string {
	var others []string
	for _, p := range e.Different {
		others = append(others, fmt.Sprintf("member %s (hash %08x)", name(p.ID), p.Hash.Hash))
	}
	return fmt.Sprintf("the data of this member, %s (hash %08x), are not those of %s at revision %d above compaction %d: %s",
		name(e.Member), e.Hash.Hash, strings.Join(others, ", "), e.Hash.HashRevision, e.Hash.CompactRevision, e.advice())
}

func (e *DifferentError) advice() string {
	switch {
	case e.Same+1 > e.Members/2:
		return "most members agree with this one; remove those that differ and add them anew with empty data directories, " +
			"then start this member again"
	case e.othersAgree():
		return "most members agree with each other; remove this member and add it anew with an empty data directory"
	}
	return "no majority has the same data, so it cannot be told which are right; " +
		"start the other members and try again, or restore a snapshot"
}

// othersAgree reports whether a majority of the members has one hash that is
// not this member's.
func (e *DifferentError) othersAgree() bool {
	count := map[uint32]int{}
	for _, p := range e.Different {
		if count[p.Hash.Hash]++; count[p.Hash.Hash] > e.Members/2 {
			return true
		}
	}
	return false
}
