package lessor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/coteriedb/coterie/machine/lease"
)

// Names of the calls by which other members ask the leader's lessor.
const (
	MethodRenew      = "lease/renew"
	MethodTimeToLive = "lease/ttl"
)

const (
	// maxBatch bounds the renewals of one call.
	maxBatch = 4096
	// maxWaiting bounds the renewals that a Remote holds.
	maxWaiting = 16 * maxBatch
	// maxCalls bounds the calls for renewals under way, of which there is one
	// as long as it does not take longer than slowCall.
	maxCalls = 4
	slowCall = 100 * time.Millisecond
	// callTimeout is how long a call may take.
	callTimeout = 5 * time.Second
	// expiredPause is how often is asked after an expired lease until it has
	// been revoked. It must not hold up the call that it came with.
	expiredPause = 50 * time.Millisecond
)

// What members say to one another.
type (
	renewRequest struct {
		IDs []int64 `json:"ids"`
	}
	renewResponse struct {
		Answers []answer `json:"answers"` // one for each id, in order
	}
	ttlRequest struct {
		ID int64 `json:"id"`
	}
	// answer is about one lease.
	answer struct {
		TTL       int64  `json:"ttl,omitempty"`       // as granted
		Remaining int64  `json:"remaining,omitempty"` // not of renewals
		Code      code   `json:"code,omitempty"`
		Message   string `json:"message,omitempty"`
	}
)

// code is an error. Any but those below is one that trying again may help.
type code string

const (
	codeOK         code = ""
	codeNotFound   code = "not-found"
	codeNotPrimary code = "not-primary"
	codeExpired    code = "expired" // about to be revoked: ask again
	codeFailed     code = "failed"
)

func failure(err error) answer {
	switch {
	case errors.Is(err, lease.ErrNotFound):
		return answer{Code: codeNotFound}
	case errors.Is(err, ErrNotPrimary):
		return answer{Code: codeNotPrimary}
	}
	return answer{Code: codeFailed, Message: err.Error()}
}

// err is the inverse of failure, as far as errors can be told apart.
func (a answer) err() error {
	switch a.Code {
	case codeOK:
		return nil
	case codeNotFound:
		return lease.ErrNotFound
	case codeNotPrimary:
		return ErrNotPrimary
	}
	return unanswered(errors.New(a.Message))
}

// unanswered is an ErrNotPrimary, since to whoever asks it means the same: the
// leader did not answer, and will, or another one.
func unanswered(err error) error {
	return fmt.Errorf("%w: the leader did not answer for the lease: %w", ErrNotPrimary, err)
}

// ServeRenew answers MethodRenew with l.
func ServeRenew(l *Lessor) func(ctx context.Context, in []byte) ([]byte, error) {
	return func(ctx context.Context, in []byte) ([]byte, error) {
		var req renewRequest
		if err := json.Unmarshal(in, &req); err != nil {
			return nil, fmt.Errorf("decode a call to renew leases: %w", err)
		}
		if len(req.IDs) > maxBatch {
			return nil, fmt.Errorf("a call to renew %d leases: at most %d can be renewed at a time", len(req.IDs), maxBatch)
		}
		answers := make([]answer, len(req.IDs))
		var group sync.WaitGroup // ended below; each ends with ctx
		for i, id := range req.IDs {
			group.Go(func() { answers[i] = l.answerRenewal(ctx, id) })
		}
		group.Wait()
		return json.Marshal(renewResponse{Answers: answers})
	}
}

func (l *Lessor) answerRenewal(ctx context.Context, id int64) answer {
	ttl, expired, err := l.tryRenew(ctx, id)
	switch {
	case expired != nil:
		return answer{Code: codeExpired}
	case err != nil:
		return failure(err)
	}
	return answer{TTL: ttl}
}

// ServeTimeToLive answers MethodTimeToLive with l.
func ServeTimeToLive(l *Lessor) func(ctx context.Context, in []byte) ([]byte, error) {
	return func(ctx context.Context, in []byte) ([]byte, error) {
		var req ttlRequest
		if err := json.Unmarshal(in, &req); err != nil {
			return nil, fmt.Errorf("decode a call for a lease's time: %w", err)
		}
		granted, remaining, err := l.TimeToLive(ctx, req.ID)
		if err != nil {
			return json.Marshal(failure(err))
		}
		return json.Marshal(answer{TTL: granted, Remaining: remaining})
	}
}

// Remote asks the lessor of the leader, from another member. Its errors are
// lease.ErrNotFound, ErrNotPrimary for whatever may succeed when it is tried
// again, and those of contexts.
//
// Renewals share calls: those that come while a call is under way wait for the
// next one. When maxWaiting wait, further ones wait to be let in.
type Remote struct {
	call   func(ctx context.Context, method string, in []byte) ([]byte, error)
	ctx    context.Context // of calls for renewals, which belong to no caller; ended by Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // the goroutines that call
	// slots holds a token for each renewal that is not answered.
	slots chan struct{}

	mu      sync.Mutex // guards the fields below
	closed  bool
	waiting []*renewal
	calls   int
	called  time.Time // when the last call began
}

// renewal is one that waits. It is answered once; there is room for the answer.
type renewal struct {
	id       int64
	answered chan renewed
}

type renewed struct {
	answer answer
	err    error
}

// NewRemote returns a Remote that asks by call, which finds the leader of the
// moment and ends with its context.
func NewRemote(call func(ctx context.Context, method string, in []byte) ([]byte, error)) *Remote {
	r := &Remote{call: call, slots: make(chan struct{}, maxWaiting)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Close ends the calls under way and waits for them. Renewals then fail.
func (r *Remote) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.tasks.Wait()
}

// Renew is Lessor.Renew on the leader. For a lease that has expired and is not revoked
// it waits for callTimeout: others of the same client wait behind it.
func (r *Remote) Renew(ctx context.Context, id int64) (ttl int64, err error) {
	patience := time.After(callTimeout)
	for {
		got, err := r.ask(ctx, id)
		if err != nil {
			return 0, err
		}
		if got.Code != codeExpired {
			return got.TTL, got.err()
		}
		select {
		case <-time.After(expiredPause):
		case <-patience:
			return 0, ErrNotRevoked
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// ask has one renewal go with a call.
func (r *Remote) ask(ctx context.Context, id int64) (answer, error) {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
	w := &renewal{id: id, answered: make(chan renewed, 1)}
	if !r.enqueue(w) {
		<-r.slots
		return answer{}, ErrNotPrimary
	}
	select {
	case got := <-w.answered:
		return got.answer, got.err
	case <-ctx.Done():
		return answer{}, ctx.Err()
	}
}

// enqueue lets w wait, and starts to call if nobody does, or if those who do may
// be stuck. It reports false after Close.
func (r *Remote) enqueue(w *renewal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.waiting = append(r.waiting, w)
	if r.calls == 0 || r.calls < maxCalls && time.Since(r.called) > slowCall {
		r.calls++
		r.called = time.Now()
		r.tasks.Go(r.run) // ends when nobody waits; Close ends what it waits for, and waits
	}
	return true
}

// run calls until nobody waits.
func (r *Remote) run() {
	for {
		batch := r.take()
		if len(batch) == 0 {
			return
		}
		answers, err := r.renewAll(batch)
		for i, w := range batch {
			got := renewed{err: err}
			if err == nil {
				got.answer = answers[i]
			}
			w.answered <- got
			<-r.slots
		}
	}
}

// take returns those that wait, up to maxBatch. If there are none, whoever called
// it no longer counts as calling.
func (r *Remote) take() []*renewal {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.waiting), maxBatch)
	if n == 0 {
		r.calls--
		return nil
	}
	batch := r.waiting[:n:n]
	if r.waiting = r.waiting[n:]; len(r.waiting) == 0 {
		r.waiting = nil
	}
	r.called = time.Now()
	return batch
}

func (r *Remote) renewAll(batch []*renewal) ([]answer, error) {
	var req renewRequest
	for _, w := range batch {
		req.IDs = append(req.IDs, w.id)
	}
	in, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.ctx, callTimeout)
	defer cancel()
	out, err := r.call(ctx, MethodRenew, in)
	if err != nil {
		return nil, unanswered(err)
	}
	return decodeAnswers(out, len(batch))
}

func decodeAnswers(out []byte, n int) ([]answer, error) {
	var resp renewResponse
	if err := json.Unmarshal(out, &resp); err != nil {
		return nil, unanswered(err)
	}
	if len(resp.Answers) != n {
		return nil, unanswered(fmt.Errorf("%d answers to %d renewals", len(resp.Answers), n))
	}
	return resp.Answers, nil
}

// TimeToLive is Lessor.TimeToLive on the leader.
func (r *Remote) TimeToLive(ctx context.Context, id int64) (granted, remaining int64, err error) {
	in, err := json.Marshal(ttlRequest{ID: id})
	if err != nil {
		return 0, -1, err
	}
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out, err := r.call(calling, MethodTimeToLive, in)
	switch {
	case ctx.Err() != nil:
		return 0, -1, ctx.Err()
	case err != nil:
		return 0, -1, unanswered(err)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		return 0, -1, unanswered(err)
	}
	if err := a.err(); err != nil {
		return 0, -1, err
	}
	return a.TTL, a.Remaining, nil
}
