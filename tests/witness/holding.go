package witness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lease is what its holder knows of a lease, and of the one key that was written under it.
type Lease struct {
	ID      int64
	Key     string        // no other lease has it
	Granted time.Duration // when it was asked for
	Renewed time.Duration // when the last renewal was asked for that was confirmed, or the grant
	Held    time.Duration // before this the lease may not end by itself
	Revoked time.Duration // when its end was asked for; Never when nobody did
}

// mayEnd is the earliest time at which the key may go.
func (l *Lease) mayEnd() time.Duration { return min(l.Held, l.Revoked) }

func (l *Lease) String() string {
	text := fmt.Sprintf("lease %x of %s, granted at %v, renewed at %v, held until %v", l.ID, l.Key, l.Granted, l.Renewed, l.Held)
	if l.Revoked != Never {
		text += fmt.Sprintf(", revoked at %v", l.Revoked)
	}
	return text
}

// hold takes one lease after the other, renews it some times, and revokes it or lets it go.
func (t *Traffic) hold(j *joined, number, member int, r *rand.Rand) {
	served := 0
	t.every(j.ctx, t.cfg.Pace, func() {
		served++
		l, ttl, ok := t.grant(j, int64(1+r.IntN(3)))
		if !ok {
			return
		}
		l.Key = fmt.Sprintf("%slease/%d/%d", Prefix, number, served)
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			t.notes.Leases = append(t.notes.Leases, l)
		}()
		t.do(j.cli, &Op{Client: number, Member: member, Kind: Put, Keys: []string{l.Key}, Value: t.value(0), Lease: l.ID})
		if !t.renew(j, &l, ttl, r.IntN(6)) || r.IntN(2) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Timeout)
		defer cancel()
		l.Revoked = t.Mark()
		_, _ = j.cli.Revoke(ctx, clientv3.LeaseID(l.ID)) // if it does not come to pass, the lease ends by itself
	})
}

func (t *Traffic) grant(j *joined, seconds int64) (Lease, time.Duration, bool) {
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Timeout)
	defer cancel()
	at := t.Mark()
	resp, err := j.cli.Grant(ctx, seconds)
	if err != nil {
		return Lease{}, 0, false
	}
	ttl := time.Duration(resp.TTL) * time.Second
	return Lease{ID: int64(resp.ID), Granted: at, Renewed: at, Held: at + ttl, Revoked: Never}, ttl, true
}

// renew keeps a lease alive for some thirds of its time. It reports whether the holder still has it, as far as he knows.
func (t *Traffic) renew(j *joined, l *Lease, ttl time.Duration, times int) bool {
	tick := time.NewTicker(ttl / 3)
	defer tick.Stop()
	for range times {
		select {
		case <-tick.C:
		case <-t.stop:
			return false
		case <-j.ctx.Done():
			return false
		}
		ctx, cancel := context.WithTimeout(t.ctx, t.cfg.Timeout)
		at := t.Mark()
		resp, err := j.cli.KeepAliveOnce(ctx, clientv3.LeaseID(l.ID))
		cancel()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return false
		case err == nil:
			l.Renewed, l.Held = at, at+time.Duration(resp.TTL)*time.Second
		}
	}
	return true
}

// awaitNoLease returns when no lease is left. All are short, so they end soon.
func (t *Traffic) awaitNoLease(ctx context.Context) error {
	cli, err := t.cluster.Client()
	if err != nil {
		return err
	}
	defer cli.Close()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		resp, err := cli.Leases(ctx)
		if err == nil && len(resp.Leases) == 0 {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("%d are left", len(resp.Leases))
			}
			return fmt.Errorf("the leases do not end: %w: %w", ctx.Err(), err)
		}
	}
}

// endings are the deletions that the ends of leases are, as requests whose outcome is not known.
func endings(leases []Lease) []Op {
	all := make([]Op, len(leases))
	for i, l := range leases {
		all[i] = Op{Kind: Delete, Keys: []string{l.Key}, Call: l.Granted, Return: Never, Err: "the lease ends"}
	}
	return all
}

// checkLeases requires that no key went before its lease might end, that no renewal was confirmed after anybody could know
// of that end, and that all are gone.
func checkLeases(n *Notes, past *Past) error {
	seen := firstSeen(n.Ops)
	var errs []error
	for i := range n.Leases {
		l := &n.Leases[i]
		for _, e := range past.byKey[l.Key] {
			if !e.Delete {
				continue
			}
			if at := seen(e.Mod); at < l.mayEnd() {
				errs = append(errs, fmt.Errorf("a lease ended too early, at revision %d, which was seen at %v: %v", e.Mod, at, l))
			} else if at < l.Renewed {
				errs = append(errs, fmt.Errorf("a lease was renewed after its end, at revision %d, which was seen at %v: %v", e.Mod, at, l))
			}
		}
		if pair, there := past.At(l.Key, past.Last()); there {
			errs = append(errs, fmt.Errorf("a lease is gone, and its key is there, changed at %d: %v", pair.Mod, l))
		}
	}
	return errors.Join(errs...)
}
