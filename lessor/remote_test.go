package lessor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coteriedb/coterie/machine/lease"
)

// network carries calls from a Remote to the lessor of a member.
type network struct {
	serve map[string]func(context.Context, []byte) ([]byte, error)
	// delay is how long each call is on its way.
	delay time.Duration
	// down is what calls return instead of being delivered.
	down error

	mu      sync.Mutex // guards the fields below
	calls   int
	largest int
}

func newNetwork(l *Lessor) *network {
	return &network{serve: map[string]func(context.Context, []byte) ([]byte, error){
		MethodRenew:      ServeRenew(l),
		MethodTimeToLive: ServeTimeToLive(l),
	}}
}

func (n *network) call(ctx context.Context, method string, in []byte) ([]byte, error) {
	var req renewRequest
	if method == MethodRenew {
		if err := json.Unmarshal(in, &req); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	n.calls++
	n.largest = max(n.largest, len(req.IDs))
	n.mu.Unlock()
	if n.down != nil {
		return nil, n.down
	}
	select {
	case <-time.After(n.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return n.serve[method](ctx, in)
}

func TestRemote(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 60)
		m.grant(-1<<62-1, 60)
		n := newNetwork(m.l)
		r := NewRemote(n.call)
		defer r.Close()
		pass(10 * time.Second)
		for _, id := range []int64{1, -1<<62 - 1} {
			if granted, remaining, err := r.TimeToLive(m.t.Context(), id); granted != 60 || remaining != 50 || err != nil {
				t.Errorf("TimeToLive = %d, %d, %v", granted, remaining, err)
			}
			if ttl, err := r.Renew(m.t.Context(), id); ttl != 60 || err != nil {
				t.Errorf("Renew = %d, %v", ttl, err)
			}
			m.wantTimeToLive(id, 60, 60)
		}

		if ttl, err := r.Renew(m.t.Context(), 99); ttl != 0 || !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("Renew of an unknown lease = %d, %v", ttl, err)
		}
		if granted, remaining, err := r.TimeToLive(m.t.Context(), 99); granted != 0 || remaining != -1 || !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("TimeToLive of an unknown lease = %d, %d, %v", granted, remaining, err)
		}

		m.setFail(errors.New("no quorum"))
		if _, err := r.Renew(m.t.Context(), 1); !errors.Is(err, ErrNotPrimary) || !strings.Contains(err.Error(), "no quorum") {
			t.Errorf("Renew without a quorum = %v", err)
		}
		m.setFail(nil)
		m.l.Demote()
		r.wantNotPrimary(m.t, "where nobody leads", ErrNotPrimary)
		n.down = errors.New("connection refused")
		r.wantNotPrimary(m.t, "without a connection", n.down)
		n.down, n.delay = nil, time.Hour
		r.wantNotPrimary(m.t, "that takes too long", context.DeadlineExceeded)
		n.delay = 0
		for _, out := range []string{"", "{}", `{"answers":[{},{}]}`, "[1]"} {
			n.serve[MethodRenew] = func(context.Context, []byte) ([]byte, error) { return []byte(out), nil }
			if _, err := r.Renew(m.t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
				t.Errorf("Renew that is answered %q = %v", out, err)
			}
		}
	})
}

func (r *Remote) wantNotPrimary(t *testing.T, what string, cause error) {
	t.Helper()
	if _, err := r.Renew(t.Context(), 1); !errors.Is(err, ErrNotPrimary) || !errors.Is(err, cause) {
		t.Errorf("Renew %s = %v", what, err)
	}
	if _, _, err := r.TimeToLive(t.Context(), 1); !errors.Is(err, ErrNotPrimary) || !errors.Is(err, cause) {
		t.Errorf("TimeToLive %s = %v", what, err)
	}
}

// TestRemoteSharesCalls: what comes while a call is under way goes with the next.
func TestRemoteSharesCalls(t *testing.T) {
	const renewals = 10_000
	bubble(t, Options{}, func(m *member) {
		for id := range int64(100) {
			m.grant(id+1, 60)
		}
		n := newNetwork(m.l)
		n.delay = 10 * time.Millisecond
		r := NewRemote(n.call)
		defer r.Close()
		var group sync.WaitGroup
		for i := range renewals { // 10,000 in a second
			group.Go(func() {
				want := int64(60)
				if _, err := r.Renew(m.t.Context(), int64(i%101)); (err == nil) != (i%101 != 0) {
					t.Errorf("renewal %d of %d: %v", i, want, err)
				}
			})
			time.Sleep(100 * time.Microsecond)
		}
		group.Wait()
		if n.calls > 110 || n.largest > 150 {
			t.Errorf("%d calls with up to %d renewals", n.calls, n.largest)
		}

		// More than a call takes wait for the ones after it.
		n.calls, n.largest, n.delay = 0, 0, slowCall
		for i := range 2*maxBatch + 11 {
			group.Go(func() {
				if _, err := r.Renew(m.t.Context(), int64(i%100+1)); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n.calls < 3 || n.calls > 4 || n.largest != maxBatch {
			t.Errorf("%d calls with up to %d renewals", n.calls, n.largest)
		}
	})
}

// TestRemoteDoesNotWaitForExpiredLeases: a lease that is being revoked is
// answered for when it is gone, and holds nobody up.
func TestRemoteDoesNotWaitForExpiredLeases(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 2)
		m.grant(2, 60)
		m.setDelay(3 * time.Second)
		pass(3 * time.Second)
		n := newNetwork(m.l)
		r := NewRemote(n.call)
		defer r.Close()
		gone := make(chan error, 1)
		go func() { // ends with the lease
			_, err := r.Renew(m.t.Context(), 1)
			gone <- err
		}()
		synctest.Wait()
		begin := time.Now()
		if _, err := r.Renew(m.t.Context(), 2); err != nil || time.Since(begin) > 0 {
			t.Errorf("Renew beside an expired lease took %v: %v", time.Since(begin), err)
		}
		if err := <-gone; !errors.Is(err, lease.ErrNotFound) {
			t.Errorf("Renew of the expired lease = %v", err)
		}
		m.wantGone(1)
		if d := time.Since(begin); d > 2*time.Second+expiredPause+granularity {
			t.Errorf("it was answered after %v", d)
		}
	})
}

// TestRemoteStuckCall: a call that is lost does not hold up those after it.
func TestRemoteStuckCall(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		m.grant(1, 60)
		n := newNetwork(m.l)
		var lost atomic.Int64
		lost.Store(1)
		r := NewRemote(func(ctx context.Context, method string, in []byte) ([]byte, error) {
			if lost.Add(-1) >= 0 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return n.call(ctx, method, in)
		})
		defer r.Close()
		stuck := make(chan error, 1)
		go func() { // ends with the call
			_, err := r.Renew(m.t.Context(), 1)
			stuck <- err
		}()
		pass(slowCall + time.Millisecond)
		begin := time.Now()
		if _, err := r.Renew(m.t.Context(), 1); err != nil || time.Since(begin) > 0 {
			t.Errorf("Renew beside a lost call took %v: %v", time.Since(begin), err)
		}
		if err := <-stuck; !errors.Is(err, ErrNotPrimary) {
			t.Errorf("the lost call's renewal: %v", err)
		}
	})
}

// TestRemoteIsBounded: who finds no room waits for it, or gives up.
func TestRemoteIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRemote(func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		var group sync.WaitGroup
		for range maxWaiting {
			group.Go(func() {
				if _, err := r.Renew(t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
					t.Errorf("Renew = %v", err)
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.Renew(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Renew at the bound = %v", err)
		}
		r.Close()
		group.Wait()
		if _, err := r.Renew(t.Context(), 1); !errors.Is(err, ErrNotPrimary) {
			t.Errorf("Renew after Close = %v", err)
		}
	})
}

func TestServeRefuses(t *testing.T) {
	bubble(t, Options{}, func(m *member) {
		many, err := json.Marshal(renewRequest{IDs: make([]int64, maxBatch+1)})
		if err != nil {
			t.Fatal(err)
		}
		for in, want := range map[string]string{
			"":                    "decode a call to renew leases",
			`{"ids":["1"]}`:       "decode a call to renew leases",
			string(many):          "at most 4096",
			`{"ids":[1e30]}`:      "decode a call to renew leases",
			`{"ids":[1.5]}`:       "decode a call to renew leases",
			`{"ids":{"1":"two"}}`: "decode a call to renew leases",
		} {
			if _, err := ServeRenew(m.l)(m.t.Context(), []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%.20s: %v, want %q", in, err, want)
			}
		}
		if _, err := ServeTimeToLive(m.l)(m.t.Context(), []byte("{")); err == nil {
			t.Error("a broken call was answered")
		}
	})
}

func FuzzServe(f *testing.F) {
	f.Add([]byte(`{"ids":[1,-2]}`))
	f.Add([]byte(`{"id":1}`))
	l := New(nil, Options{}) // demoted, so the table is not asked
	f.Fuzz(func(t *testing.T, in []byte) {
		if out, err := ServeRenew(l)(t.Context(), in); err == nil {
			var req renewRequest
			if err := json.Unmarshal(in, &req); err != nil {
				t.Fatal(err)
			}
			answers, err := decodeAnswers(out, len(req.IDs))
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range answers {
				if a.err() != ErrNotPrimary {
					t.Errorf("answer %+v", a)
				}
			}
		}
		if out, err := ServeTimeToLive(l)(t.Context(), in); err == nil && !strings.Contains(string(out), string(codeNotPrimary)) {
			t.Errorf("answer %s", out)
		}
	})
}

func FuzzDecodeAnswers(f *testing.F) {
	f.Add([]byte(`{"answers":[{"ttl":60}]}`), 1)
	f.Add([]byte(`{"answers":[{"code":"not-found"},{"code":"failed","message":"x"}]}`), 2)
	f.Fuzz(func(t *testing.T, out []byte, n int) {
		answers, err := decodeAnswers(out, n)
		if err != nil && !errors.Is(err, ErrNotPrimary) {
			t.Errorf("error %v", err)
		}
		for _, a := range answers {
			if err := a.err(); (err == nil) != (a.Code == codeOK) {
				t.Errorf("answer %s has the error %v", fmt.Sprint(a), err)
			}
		}
	})
}

// A lease that has expired and is not revoked holds up who renews it, and the renewals of the same client behind it, for no longer than
// a call may take.
func TestRemoteGivesUpAnExpiredLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRemote(func(context.Context, string, []byte) ([]byte, error) {
			return []byte(`{"answers":[{"code":"expired"}]}`), nil
		})
		defer r.Close()
		began := time.Now()
		_, err := r.Renew(t.Context(), 1)
		if took := time.Since(began); !errors.Is(err, ErrNotRevoked) || took < callTimeout-expiredPause || took > callTimeout+expiredPause {
			t.Errorf("after %v: %v", took, err)
		}
	})
}
