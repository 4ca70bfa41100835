package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/credentials/insecure"
)

// webClient speaks HTTP/2 without TLS.
func webClient(t *testing.T) *http.Client {
	t.Helper()
	h := &http.Transport{Protocols: new(http.Protocols), ExpectContinueTimeout: 10 * time.Second}
	h.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(h.CloseIdleConnections)
	return &http.Client{Transport: h, Timeout: 20 * time.Second}
}

// webHandlers are by path; what a client sees of them does not depend on who serves them.
var webHandlers = map[string]http.HandlerFunc{
	"/nothing": func(http.ResponseWriter, *http.Request) {},
	"/small":   func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<p>small</p>") },
	"/large":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 300<<10)) },
	"/many":    func(w http.ResponseWriter, _ *http.Request) { writeMany(w) },
	"/typed": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "a/b")
		fmt.Fprint(w, "x")
	},
	"/teapot":     func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "short and stout", http.StatusTeapot) },
	"/no-content": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
	"/unmodified": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
	"/redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusSeeOther) },
	"/twice": func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(201)
		w.Header().Set("X-Late", "1")
		w.WriteHeader(500)
	},
	"/length": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "3")
		fmt.Fprint(w, "abc")
	},
	"/forbidden": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.Header().Set("Transfer-Encoding", "x")
	},
	"/flush": func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "a")
		w.(http.Flusher).Flush()
		fmt.Fprint(w, "b")
	},
	"/flush-first": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); fmt.Fprint(w, "b") },
	"/echo":        func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) },
	"/drop":        func(w http.ResponseWriter, r *http.Request) { r.Body.Close(); fmt.Fprint(w, "dropped") },
	"/request":     writeRequest,
	"/trailer": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-One, X-None")
		fmt.Fprint(w, "body")
		w.Header().Set("X-One", "1")
		w.Header().Set(http.TrailerPrefix+"X-Two", "2")
	},
	"/early": func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "then")
	},
}

func writeMany(w io.Writer) {
	for i := range 1000 {
		fmt.Fprintf(w, "line %d\n", i)
	}
}

// writeRequest says what the handler sees.
func writeRequest(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, r.Method, r.URL, r.Proto, r.ProtoMajor, r.ProtoMinor, r.RequestURI, r.ContentLength, r.TLS != nil, r.Trailer)
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		fmt.Fprintln(w, name, r.Header[name])
	}
	if _, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); !ok {
		fmt.Fprintln(w, "no local address")
	}
}

func serveWebHandlers(w http.ResponseWriter, r *http.Request) {
	if h := webHandlers[r.URL.Path]; h != nil {
		h(w, r)
		return
	}
	http.NotFound(w, r)
}

// TestWeb: HTTP/2 requests that are not gRPC are served as net/http serves them.
func TestWeb(t *testing.T) {
	f := newFixture(t, Options{})
	f.Handle(http.HandlerFunc(serveWebHandlers))
	own := f.listen(t, Listener{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	reference := &http.Server{Handler: http.HandlerFunc(serveWebHandlers), Protocols: new(http.Protocols)}
	reference.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { _ = reference.Serve(l) })
	defer serving.Wait()
	defer reference.Close()

	c := webClient(t)
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, path := range append(slices.Sorted(maps.Keys(webHandlers)), "/other?q=1") {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT"} {
			for _, body := range []string{"", "abc", strings.Repeat("0123456789", 10_000)} {
				if body != "" && (method == "GET" || method == "HEAD") {
					continue
				}
				got := roundTrip(t, c, method, "http://"+own+path, body)
				want := roundTrip(t, c, method, "http://"+l.Addr().String()+path, body)
				if got != want {
					t.Errorf("%s %s with %d bytes: got\n%s\nwant\n%s", method, path, len(body), got, want)
				}
			}
		}
	}
}

// roundTrip returns all that a client sees of an answer.
func roundTrip(t *testing.T, c *http.Client, method, url, body string) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Host = "example.org"
	r.Header["Cookie"] = []string{"a=1; b=2"}
	r.Header["X-Many"] = []string{"1", "2"}
	if strings.HasSuffix(url, "/echo") && body != "" {
		r.Header.Set("Expect", "100-continue")
	}
	resp, err := c.Do(r)
	if err != nil {
		return err.Error()[strings.LastIndex(err.Error(), ": "):]
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	var b strings.Builder
	fmt.Fprintf(&b, "%d, length %d, %d bytes: %.200q, %v\n", resp.StatusCode, resp.ContentLength, len(got), got, err)
	for _, h := range []http.Header{resp.Header, resp.Trailer} {
		for _, name := range slices.Sorted(maps.Keys(h)) {
			if name == "Date" {
				h[name] = []string{"some"}
			}
			fmt.Fprintf(&b, "%s: %q\n", name, h[name])
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// A client that goes away ends the context of its request, and what the handler reads and writes.
func TestWebCancellation(t *testing.T) {
	f := newFixture(t, Options{})
	begun, ended := make(chan struct{}), make(chan error, 2)
	f.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
		for err = nil; err == nil; {
			_, err = w.Write(make([]byte, 100<<10))
		}
		ended <- err
	}))
	addr := f.listen(t, Listener{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	body, unread := io.Pipe()
	defer unread.Close()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://"+addr+"/", body)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := webClient(t).Do(r); err == nil {
		resp.Body.Close()
		t.Error("the request was answered")
	}
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("the handler was not told")
		}
	}
}

// More than was announced is not sent.
func TestWebContentLength(t *testing.T) {
	f := newFixture(t, Options{})
	f.Handle(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "3")
		if _, err := fmt.Fprint(w, "abcd"); !errors.Is(err, http.ErrContentLength) {
			t.Errorf("writing too much: %v", err)
		}
		fmt.Fprint(w, "abc")
	}))
	if got := get(t, webClient(t), "http://"+f.listen(t, Listener{})); got != "abc" {
		t.Errorf("got %q", got)
	}
}

// A handler that panics costs its request.
func TestWebPanic(t *testing.T) {
	f := newFixture(t, Options{})
	f.Handle(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "fine")
	}))
	addr := f.listen(t, Listener{})
	c := webClient(t)
	if resp, err := c.Get("http://" + addr + "/panic"); err == nil {
		resp.Body.Close()
		t.Errorf("got %v", resp.Status)
	}
	if got := get(t, c, "http://"+addr+"/"); got != "fine" {
		t.Errorf("got %q", got)
	}
}

// gRPC and other requests share a connection, and large bodies do not hold up small calls.
func TestWebBesideGRPC(t *testing.T) {
	f := newFixture(t, Options{})
	f.Handle(http.HandlerFunc(serveWebHandlers))
	addr := f.listen(t, Listener{})
	c := webClient(t)
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+addr+"/grpc.health.v1.Health/Check", bytes.NewReader(make([]byte, 5)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/grpc")
	for range 3 {
		if got := get(t, &http.Client{Transport: c.Transport}, "http://"+addr+"/small"); got != "<p>small</p>" {
			t.Errorf("got %q", got)
		}
		r.Body = io.NopCloser(bytes.NewReader(make([]byte, 5)))
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.Trailer.Get("Grpc-Status") != "0" {
			t.Errorf("trailer %v", resp.Trailer)
		}
	}
}

// On a port for gRPC alone other requests are refused.
func TestWebOnAPortOfGRPC(t *testing.T) { onEach(t, testWebOnAPortOfGRPC) }

func testWebOnAPortOfGRPC(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	addr := f.listen(t, Listener{Protocols: GRPCOnly})
	resp, err := webClient(t).Post("http://"+addr+"/x", "text/plain", strings.NewReader("abc"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 415 || resp.Header.Get("Grpc-Message") != `invalid gRPC request content-type "text/plain"` {
		t.Errorf("got %v, %v", resp.Status, resp.Header)
	}
	mustCheck(t, dial(t, addr, insecure.NewCredentials()))
}

// curl, where it is installed, by HTTP/1.1 and by HTTP/2 without TLS and with.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	f := newFixture(t, Options{})
	f.Handle(http.HandlerFunc(serveWebHandlers))
	plain := f.listen(t, Listener{})
	server, _ := certificate(t)
	secure := f.listen(t, Listener{TLS: server})
	large := strings.Repeat("0123456789", 200_000)
	for _, tt := range []struct{ how, url string }{
		{"--http1.1", "http://" + plain},
		{"--http2-prior-knowledge", "http://" + plain},
		{"--http1.1", "https://" + secure},
		{"--http2", "https://" + secure},
	} {
		cmd := exec.CommandContext(t.Context(), curl, "-sSk", "-m", "20", tt.how, "--data-binary", "@-", tt.url+"/echo")
		cmd.Stdin = strings.NewReader(large)
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "unsupported") {
			t.Logf("curl cannot: %s", out)
			continue
		}
		if err != nil || string(out) != large {
			t.Errorf("%s %s: %v, %d bytes: %.100s", tt.how, tt.url, err, len(out), out)
		}
	}
}
