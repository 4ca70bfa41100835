package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/http/httpguts"

	"github.com/coteriedb/coterie/rpc/h2"
)

// serveWeb has the HTTP handler answer a request.
func (t *own) serveWeb(s *h2.Stream) {
	defer s.Release(false)
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), http.LocalAddrContextKey, s.LocalAddr()))
	defer cancel()
	s.OnEnd(func(error) { cancel() })
	w := &webWriter{s: s, header: http.Header{}}
	r, err := webRequest(ctx, w)
	if err != nil {
		http.Error(w, "400 Bad Request", http.StatusBadRequest)
		w.finish()
		return
	}
	w.head = r.Method == http.MethodHead
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		s.Reset(h2.Internal)
		if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			t.o.Logger.Error("a handler of HTTP panicked", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		}
	}()
	t.o.HTTP.ServeHTTP(w, r)
	w.finish()
}

// webRequest makes a request of net/http of a stream.
func webRequest(ctx context.Context, w *webWriter) (*http.Request, error) {
	h := w.s.Header()
	header := make(http.Header, len(h.Fields))
	for _, f := range h.Fields {
		name := http.CanonicalHeaderKey(f.Name)
		if name == "Cookie" && header[name] != nil {
			header[name][0] += "; " + f.Value // RFC 9113, section 8.2.3
			continue
		}
		header[name] = append(header[name], f.Value)
	}
	r := &http.Request{
		Method: h.Method, Proto: "HTTP/2.0", ProtoMajor: 2, Header: header,
		Body: http.NoBody, ContentLength: h.ContentLength, Host: h.Authority,
		RemoteAddr: w.s.RemoteAddr().String(), TLS: w.s.TLS(), RequestURI: h.Path,
	}
	if r.Host == "" {
		r.Host = header.Get("Host")
	}
	header.Del("Host")
	switch {
	case w.s.Empty():
		r.ContentLength = 0
	case h.ContentLength != 0:
		r.Body = &webBody{w: w, expected: httpguts.HeaderValuesContainsToken(header["Expect"], "100-continue")}
	}
	if h.Method == http.MethodConnect {
		r.URL, r.RequestURI = &url.URL{Host: h.Authority}, h.Authority
		return r.WithContext(ctx), nil
	}
	var err error
	if r.URL, err = url.ParseRequestURI(h.Path); err != nil {
		return nil, err
	}
	return r.WithContext(ctx), nil
}

// webBody is the body of a request.
type webBody struct {
	w        *webWriter
	expected bool // the client waits to be told that it is wanted
	closed   bool
}

// Read implements io.Reader.
func (b *webBody) Read(p []byte) (int, error) {
	if b.closed {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.expected {
		b.expected = false
		b.w.informational(http.StatusContinue)
	}
	n, err := b.w.s.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("reading the body: %w", err)
	}
	return n, err
}

// Close implements io.Closer.
func (b *webBody) Close() error {
	b.closed = true
	return nil
}

// webBuffer is how much of an answer is kept back, to know how long it is if it is no longer.
const webBuffer = 4 << 10

// webWriter implements http.ResponseWriter and http.Flusher.
type webWriter struct {
	s      *h2.Stream
	header http.Header
	head   bool // the body is not sent

	code     int         // 0: not yet chosen
	chosen   http.Header // as it was then
	headSent bool
	buf      []byte
	written  int64
}

// Header implements http.ResponseWriter.
func (w *webWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *webWriter) WriteHeader(code int) {
	if code < 100 || code > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %d", code))
	}
	switch {
	case w.code != 0:
	case code < 200 && code != http.StatusSwitchingProtocols:
		w.informational(code)
	default:
		w.code = code
		w.chosen = w.header.Clone()
	}
}

func (w *webWriter) informational(code int) {
	if w.code == 0 {
		_ = w.s.SendInformation(webFields([]h2.Field{{Name: ":status", Value: strconv.Itoa(code)}}, w.header))
	}
}

// Write implements io.Writer.
func (w *webWriter) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !bodyAllowed(w.code) {
		return 0, http.ErrBodyNotAllowed
	}
	if n, err := strconv.ParseInt(w.chosen.Get("Content-Length"), 10, 64); err == nil && w.written+int64(len(p)) > n {
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	total := len(p)
	for len(w.buf)+len(p) > webBuffer {
		n := webBuffer - len(w.buf)
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		if err := w.send(); err != nil {
			return total - len(p), err
		}
	}
	w.buf = append(w.buf, p...)
	return total, nil
}

// WriteString implements io.StringWriter.
func (w *webWriter) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// FlushError is what http.ResponseController calls.
func (w *webWriter) FlushError() error {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	return w.send()
}

// Flush implements http.Flusher.
func (w *webWriter) Flush() { _ = w.FlushError() }

// send sends the header and what is in the buffer.
func (w *webWriter) send() error {
	head := w.takeHead()
	body := w.buf
	w.buf = w.buf[:0]
	if w.head {
		body = nil
	}
	return w.s.Send(head, h2.Bytes(body))
}

// takeHead returns the header, to be sent once.
func (w *webWriter) takeHead() []h2.Field {
	if w.headSent {
		return nil
	}
	w.headSent = true
	if len(w.buf) > 0 && w.chosen["Content-Type"] == nil && w.chosen.Get("Content-Encoding") == "" {
		w.chosen.Set("Content-Type", http.DetectContentType(w.buf))
	}
	if w.chosen["Date"] == nil {
		w.chosen.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	return webFields([]h2.Field{{Name: ":status", Value: strconv.Itoa(w.code)}}, w.chosen)
}

// finish ends the answer after the handler has returned.
func (w *webWriter) finish() {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.headSent && bodyAllowed(w.code) && w.chosen["Content-Length"] == nil && (!w.head || len(w.buf) > 0) {
		w.chosen.Set("Content-Length", strconv.Itoa(len(w.buf)))
	}
	trailer := w.trailer()
	if w.headSent || len(w.buf) > 0 && !w.head || len(trailer) > 0 {
		if w.send() != nil {
			return
		}
		_ = w.s.Finish(nil, trailer)
		return
	}
	_ = w.s.Finish(w.takeHead(), nil)
}

// trailer returns the fields that the handler has announced, or marked.
func (w *webWriter) trailer() []h2.Field {
	out := http.Header{}
	for _, names := range w.chosen["Trailer"] {
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if v := w.header[name]; len(v) > 0 {
				out[name] = v
			}
		}
	}
	for name, v := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			out[name] = v
		}
	}
	return webFields(nil, out)
}

// webFields appends a header's fields, in order, without those that HTTP/2 does not have.
func webFields(fields []h2.Field, header http.Header) []h2.Field {
	begin := len(fields)
	for name, values := range header {
		lower := strings.ToLower(name)
		switch lower {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			continue
		}
		if !httpguts.ValidHeaderFieldName(lower) {
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				fields = append(fields, h2.Field{Name: lower, Value: v})
			}
		}
	}
	slices.SortStableFunc(fields[begin:], func(a, b h2.Field) int { return strings.Compare(a.Name, b.Name) })
	return fields
}

func bodyAllowed(code int) bool {
	return code >= 200 && code != http.StatusNoContent && code != http.StatusNotModified
}
