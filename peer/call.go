package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
)

const (
	// maxCall bounds what a call carries, either way.
	maxCall = 16 << 20
	// maxAnswering bounds the calls being answered; further ones are refused.
	maxAnswering = 1024
	// maxCallConns bounds the calls to one member; further ones wait.
	maxCallConns = 256
)

// Codes of CallErrors that the transport makes; they are gRPC's.
const (
	codeUnknown           = 2
	codeResourceExhausted = 8
	codeUnimplemented     = 12
	codeUnavailable       = 14
)

// ErrUnknownMember means that a call was for a member that is not there.
var ErrUnknownMember = errors.New("peer: no member with this id is known")

// CallError is what the far side answered.
type CallError struct {
	Code    int
	Message string
}

func (e *CallError) Error() string { return e.Message }

type callFunc func(ctx context.Context, in []byte) ([]byte, error)

// Handle sets what answers calls of a method, before the first may come. An
// error that is no *CallError is sent as one with code 2 (unknown). The context
// ends when the caller gives up.
func (t *Transport) Handle(method string, f func(ctx context.Context, in []byte) ([]byte, error)) {
	t.calls[method] = f
}

// Call makes one small request to one member. An answer that is an error is a
// *CallError; with any other error the member may or may not have acted.
func (t *Transport) Call(ctx context.Context, to uint64, method string, in []byte) ([]byte, error) {
	r := t.remote(to)
	if r == nil {
		return nil, fmt.Errorf("%w: %x", ErrUnknownMember, to)
	}
	if len(in) > maxCall {
		return nil, fmt.Errorf("peer: call of %s with %d bytes; at most %d are sent", method, len(in), maxCall)
	}
	leave, ok := t.enter()
	if !ok {
		return nil, http.ErrServerClosed
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	var errs []error
	for _, e := range r.where() {
		out, err := t.call(ctx, r, e, method, in)
		if err == nil {
			return out, nil
		}
		errs = append(errs, err)
		if _, ok := unconnected(err); !ok || ctx.Err() != nil {
			break // it may have arrived, or the time is over
		}
	}
	if len(errs) == 0 {
		errs = append(errs, errors.New("it has no peer URL that could be dialled"))
	}
	return nil, fmt.Errorf("call %s of member %x: %w", method, to, errors.Join(errs...))
}

func (t *Transport) call(ctx context.Context, r *remote, e endpoint, method string, in []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url(pathCall+method).String(), bytes.NewReader(in))
	if err != nil {
		return nil, err
	}
	req.Header = t.greeting(r.id).header()
	res, err := t.client.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusOK {
		return readBounded(res.Body, maxCall)
	}
	code, err := strconv.Atoi(res.Header.Get(headerCode))
	if err != nil {
		return nil, t.refused(res)
	}
	text, err := readBounded(res.Body, maxCall)
	if err != nil {
		return nil, err
	}
	return nil, &CallError{code, string(text)}
}

// readBounded reads all of r, which must not have more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("more than %d bytes", limit)
	}
	return b, err
}

// serveCall answers a member's call.
func (t *Transport) serveCall(w http.ResponseWriter, r *http.Request) {
	g, no := t.check(r.Header)
	if no != nil {
		no.write(w, t.cfg.ClusterID)
		return
	}
	leave, ok := t.enter()
	if !ok {
		writeCallError(w, &CallError{codeUnavailable, "this member is stopping"})
		return
	}
	defer leave()
	select {
	case t.answering <- struct{}{}:
		defer func() { <-t.answering }()
	default:
		writeCallError(w, &CallError{codeResourceExhausted, "too many calls"})
		return
	}
	out, err := t.answer(w, r)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(t.stall())) // Close waits for the answer
	if err != nil {
		var failed *CallError
		if !errors.As(err, &failed) {
			failed = &CallError{codeUnknown, err.Error()}
		}
		writeCallError(w, failed)
		return
	}
	if _, err := w.Write(out); err != nil {
		t.log.Debug("the answer to a call was not sent", hexID("member", g.from), zap.Error(err))
	}
}

func (t *Transport) answer(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	method := r.PathValue("method")
	f := t.calls[method]
	if f == nil {
		return nil, &CallError{codeUnimplemented, fmt.Sprintf("member %x knows no call %q: it may run another version", t.cfg.MemberID, method)}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	c := http.NewResponseController(w)
	defer context.AfterFunc(t.ctx, func() {
		cancel()
		_ = c.SetReadDeadline(past) // a connection that has none is not read from
	})()
	if err := c.SetReadDeadline(time.Now().Add(t.cfg.ReadTimeout)); err != nil {
		return nil, err
	}
	in, err := readBounded(r.Body, maxCall)
	if err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(noDeadline); err != nil {
		return nil, err
	}
	return f(ctx, in)
}

func writeCallError(w http.ResponseWriter, e *CallError) {
	w.Header().Set(headerCode, strconv.Itoa(e.Code))
	w.WriteHeader(http.StatusUnprocessableEntity)
	_, _ = io.WriteString(w, e.Message) // who asked may be gone
}
