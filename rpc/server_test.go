package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(asServer); kind != "" {
		if err := runBenchmarkServer(kind); err != nil {
			log.Fatal(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// testService answers health checks: it says what it knows of the peer as the error's text for
// the service "peer", and waits for the service "wait".
type testService struct {
	healthpb.UnimplementedHealthServer
	waiting chan struct{} // receives when a call has begun to wait
	release chan struct{} // ends the waiting
}

func (s *testService) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	switch r.Service {
	case "peer":
		p, _ := peer.FromContext(ctx)
		kind := "none"
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			kind = "tls " + info.State.NegotiatedProtocol
		}
		return nil, status.Error(codes.AlreadyExists, kind)
	case "wait":
		s.waiting <- struct{}{}
		select {
		case <-s.release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVING}, nil
}

func (s *testService) Watch(_ *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	s.waiting <- struct{}{}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// onEach runs a test on both transports: nobody is to notice which it is.
func onEach(t *testing.T, test func(*testing.T, Transport)) {
	for _, transport := range []Transport{Coterie, GRPCGo} {
		t.Run(string(transport), func(t *testing.T) { test(t, transport) })
	}
}

type fixture struct {
	*Server
	service *testService
}

func newFixture(t *testing.T, o Options) *fixture {
	t.Helper()
	o.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s tls=%t", r.Proto, r.URL.Path, r.TLS != nil)
	})
	f := &fixture{NewServer(o), &testService{waiting: make(chan struct{}, 8), release: make(chan struct{})}}
	healthpb.RegisterHealthServer(f.Server, f.service)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		f.Stop(ctx)
	})
	return f
}

// listen serves on a port of its own and returns its address.
func (f *fixture) listen(t *testing.T, l Listener) string {
	t.Helper()
	var err error
	if l.Listener == nil {
		l.Listener, err = net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- f.Serve(l) }()
	t.Cleanup(func() {
		f.Stop(expired())
		if err := <-served; err != nil {
			t.Errorf("Serve returned %v after Stop", err)
		}
	})
	return l.Addr().String()
}

// checkThatWaits returns when a call waits, and how that will end.
func (f *fixture) checkThatWaits(t *testing.T, c healthpb.HealthClient) <-chan error {
	done := make(chan error, 1)
	go func() { // ends with the call, which the test releases
		_, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "wait"})
		done <- err
	}()
	<-f.service.waiting
	return done
}

func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func dial(t *testing.T, target string, creds credentials.TransportCredentials) healthpb.HealthClient {
	t.Helper()
	cc, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return healthpb.NewHealthClient(cc)
}

func mustCheck(t *testing.T, c healthpb.HealthClient) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Check(ctx, &healthpb.HealthCheckRequest{}); err != nil {
		t.Fatalf("gRPC call: %v", err)
	}
}

// peerOf returns what the server knows of the client.
func peerOf(t *testing.T, c healthpb.HealthClient) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := c.Check(ctx, &healthpb.HealthCheckRequest{Service: "peer"})
	if status.Code(err) != codes.AlreadyExists {
		t.Fatalf("gRPC call: %v", err)
	}
	return status.Convert(err).Message()
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	defer c.CloseIdleConnections()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func httpClient(cfg *tls.Config, http2 bool) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: cfg.Clone(), ForceAttemptHTTP2: http2}, Timeout: 10 * time.Second}
}

// certificate returns a server's configuration and a client's that trusts it.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return &tls.Config{Certificates: s.TLS.Certificates}, &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

func TestSharedPort(t *testing.T) { onEach(t, testSharedPort) }

func testSharedPort(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	addr := f.listen(t, Listener{})
	mustCheck(t, dial(t, addr, insecure.NewCredentials()))
	if got, want := get(t, httpClient(nil, false), "http://"+addr+"/x"), "HTTP/1.1 /x tls=false"; got != want {
		t.Errorf("HTTP got %q, want %q", got, want)
	}
}

func TestTLSPort(t *testing.T) { onEach(t, testTLSPort) }

func testTLSPort(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	server, client := certificate(t)
	addr := f.listen(t, Listener{TLS: server})
	tests := []struct {
		name string
		got  func() string
		want string
	}{
		{"gRPC", func() string { return peerOf(t, dial(t, addr, credentials.NewTLS(client))) }, "tls h2"},
		{"gRPC that also offers HTTP/1.1", func() string {
			c := client.Clone()
			c.NextProtos = []string{"h2", "http/1.1"}
			return peerOf(t, dial(t, addr, credentials.NewTLS(c)))
		}, "tls h2"},
		{"HTTP/2", func() string { return get(t, httpClient(client, true), "https://"+addr+"/x") }, "HTTP/2.0 /x tls=true"},
		{"HTTP/1.1", func() string {
			c := client.Clone()
			c.NextProtos = []string{"http/1.1"}
			return get(t, httpClient(c, false), "https://"+addr+"/x")
		}, "HTTP/1.1 /x tls=true"},
		{"no ALPN", func() string {
			c, err := tls.Dial("tcp", addr, client)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return rawGet(t, c)
		}, "HTTP/1.1 /raw tls=true"},
		{"plaintext", func() string {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			return rawGet(t, c)
		}, "Client sent an HTTP request to an HTTPS server."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.got(); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func rawGet(t *testing.T, c net.Conn) string {
	t.Helper()
	if _, err := io.WriteString(c, "GET /raw HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTLSAndPlaintextOnOnePort(t *testing.T) { onEach(t, testTLSAndPlaintextOnOnePort) }

func testTLSAndPlaintextOnOnePort(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	server, client := certificate(t)
	addr := f.listen(t, Listener{TLS: server, Plaintext: true})
	if got := peerOf(t, dial(t, addr, credentials.NewTLS(client))); got != "tls h2" {
		t.Errorf("peer over TLS is %q", got)
	}
	if got := peerOf(t, dial(t, addr, insecure.NewCredentials())); got != "none" {
		t.Errorf("peer in plaintext is %q", got)
	}
	if got, want := get(t, httpClient(nil, false), "http://"+addr+"/x"), "HTTP/1.1 /x tls=false"; got != want {
		t.Errorf("HTTP got %q, want %q", got, want)
	}
}

func TestClientHelloIsPassedToTheCallersHook(t *testing.T) {
	onEach(t, testClientHelloIsPassedToTheCallersHook)
}

func testClientHelloIsPassedToTheCallersHook(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	server, client := certificate(t)
	var asked atomic.Int32
	reloading := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		asked.Add(1)
		return server, nil
	}}
	addr := f.listen(t, Listener{TLS: reloading})
	if got := peerOf(t, dial(t, addr, credentials.NewTLS(client))); got != "tls h2" {
		t.Errorf("peer is %q", got)
	}
	if asked.Load() != 1 {
		t.Errorf("hook was called %d times", asked.Load())
	}
}

func TestSplitPorts(t *testing.T) { onEach(t, testSplitPorts) }

func testSplitPorts(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	grpcAddr := f.listen(t, Listener{Protocols: GRPCOnly})
	httpAddr := f.listen(t, Listener{Protocols: HTTPOnly})
	mustCheck(t, dial(t, grpcAddr, insecure.NewCredentials()))
	if got, want := get(t, httpClient(nil, false), "http://"+httpAddr+"/x"), "HTTP/1.1 /x tls=false"; got != want {
		t.Errorf("HTTP got %q, want %q", got, want)
	}
	if _, err := httpClient(nil, false).Get("http://" + grpcAddr + "/x"); err == nil {
		t.Error("the gRPC port answered HTTP")
	}
}

// Garbage ends the connection that it came on and leaves the others alone.
func TestGarbage(t *testing.T) { onEach(t, testGarbage) }

func testGarbage(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport, HandshakeTimeout: 200 * time.Millisecond, ReadHeaderTimeout: 200 * time.Millisecond})
	server, _ := certificate(t)
	for name, addr := range map[string]string{"plain": f.listen(t, Listener{}), "tls": f.listen(t, Listener{TLS: server})} {
		good := []byte("GET / HTTP/1.1\r\n")
		rnd := rand.New(rand.NewPCG(1, 2))
		noise := make([]byte, 1<<16)
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		for what, garbage := range map[string][]byte{
			"nothing":              nil,
			"one byte":             {0},
			"noise":                noise,
			"noise after preface":  append([]byte(preface), noise...),
			"half a preface":       []byte(preface[:10]),
			"preface, wrong end":   []byte(preface[:20] + "XXXX\r\n\r\n"),
			"half a request":       good,
			"endless header":       append(good, bytes.Repeat([]byte("a: b\r\n"), 1<<16)...),
			"client hello, cut":    {0x16, 3, 1, 2, 0, 1},
			"huge frame":           append([]byte(preface), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1),
			"null bytes, one line": make([]byte, 4096),
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = c.Write(garbage) // may fail: the server may have hung up already
				if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				_, err = io.Copy(io.Discard, c)
				var ne net.Error
				if errors.As(err, &ne) && ne.Timeout() {
					t.Error("the server keeps the connection")
				}
			})
		}
		if name == "plain" {
			mustCheck(t, dial(t, addr, insecure.NewCredentials()))
		}
	}
}

// A client that speaks TLS to a port without it is hung up on, rather than left waiting for an answer in TLS.
func TestTLSToAPortWithout(t *testing.T) { onEach(t, testTLSToAPortWithout) }

func testTLSToAPortWithout(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport, HandshakeTimeout: time.Hour, ReadHeaderTimeout: time.Hour})
	c, err := net.Dial("tcp", f.listen(t, Listener{}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	err = tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
	var ne net.Error
	if err == nil || errors.As(err, &ne) && ne.Timeout() {
		t.Fatalf("the handshake ended with %v", err)
	}
}

func TestOtherConnectionsSurviveGarbage(t *testing.T) { onEach(t, testOtherConnectionsSurviveGarbage) }

func testOtherConnectionsSurviveGarbage(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	addr := f.listen(t, Listener{})
	client := dial(t, addr, insecure.NewCredentials())
	done := f.checkThatWaits(t, client)
	for range 20 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(preface + "this is not a frame at all"))
		c.Close()
	}
	close(f.service.release)
	if err := <-done; err != nil {
		t.Errorf("a call in flight failed: %v", err)
	}
}

func TestUnixSocket(t *testing.T) { onEach(t, testUnixSocket) }

func testUnixSocket(t *testing.T, transport Transport) {
	path := filepath.Join(t.TempDir(), "s")
	u := url.URL{Scheme: "unix", Path: path}
	l, err := Listen(t.Context(), u, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), u, ListenOptions{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("a socket in use was taken over: %v", err)
	}
	// What a killed process leaves behind.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen(t.Context(), u, ListenOptions{}); err != nil {
		t.Fatalf("a dead socket was not replaced: %v", err)
	}
	f := newFixture(t, Options{Transport: transport})
	f.listen(t, Listener{Listener: l})
	mustCheck(t, dial(t, "unix:"+path, insecure.NewCredentials()))
}

func TestListenReusePort(t *testing.T) { onEach(t, testListenReusePort) }

func testListenReusePort(t *testing.T, transport Transport) {
	u := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	a, err := Listen(t.Context(), u, ListenOptions{ReusePort: true, ReuseAddress: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	u.Host = a.Addr().String()
	b, err := Listen(t.Context(), u, ListenOptions{ReusePort: true})
	if err != nil {
		t.Fatalf("a second listener on the port: %v", err)
	}
	b.Close()
	if c, err := Listen(t.Context(), u, ListenOptions{}); err == nil {
		c.Close()
		t.Error("a listener without the option took the port too")
	}
}

func TestInProcess(t *testing.T) { onEach(t, testInProcess) }

func testInProcess(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	f.Start()
	cc, err := f.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	mustCheck(t, healthpb.NewHealthClient(cc))
}

func TestStopWaitsForRequests(t *testing.T) { onEach(t, testStopWaitsForRequests) }

func testStopWaitsForRequests(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closing := &closingListener{Listener: l, closed: make(chan struct{})}
	client := dial(t, f.listen(t, Listener{Listener: closing}), insecure.NewCredentials())
	done := f.checkThatWaits(t, client)
	stopped := make(chan struct{})
	go func() {
		f.Stop(t.Context())
		close(stopped)
	}()
	<-closing.closed
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("a new connection was not refused")
	}
	select {
	case <-stopped:
		t.Fatal("Stop did not wait for the request")
	default:
	}
	close(f.service.release)
	if err := <-done; err != nil {
		t.Errorf("request in flight: %v", err)
	}
	<-stopped
}

func TestStopCutsStreamsAtTheDeadline(t *testing.T) { onEach(t, testStopCutsStreamsAtTheDeadline) }

func testStopCutsStreamsAtTheDeadline(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	addr := f.listen(t, Listener{})
	server, tlsClient := certificate(t)
	tlsClient.NextProtos = []string{"h2", "http/1.1"} // a stream on net/http's server
	tlsAddr := f.listen(t, Listener{TLS: server})
	silent, err := net.Dial("tcp", addr) // never says what it speaks
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []healthpb.HealthClient{dial(t, addr, insecure.NewCredentials()), dial(t, tlsAddr, credentials.NewTLS(tlsClient))} {
		stream, err := c.Watch(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		<-f.service.waiting
		defer func() {
			if _, err := stream.Recv(); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("stream ended with %v", err)
			}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	f.Stop(ctx)
}

func TestMaxConns(t *testing.T) { onEach(t, testMaxConns) }

func testMaxConns(t *testing.T, transport Transport) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{Transport: transport})
		l := newHandoff("port")
		f.listen(t, Listener{Listener: l, MaxConns: 1})
		first, accepted := net.Pipe()
		l.deliver(accepted)
		if _, err := io.WriteString(first, "GET /raw HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := first.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		second, waits := net.Pipe()
		defer second.Close()
		go l.deliver(waits) // ends when it is accepted
		answered := make(chan string, 1)
		go func() { answered <- rawGet(t, second) }()
		synctest.Wait()
		select {
		case <-answered:
			t.Fatal("a second connection was served beside the first")
		default:
		}
		first.Close()
		if got := <-answered; !strings.Contains(got, "/raw") {
			t.Errorf("after the first had ended the second got %q", got)
		}
	})
}

type traffic struct{ sent, received atomic.Int64 }

func (t *traffic) Sent(n int)     { t.sent.Add(int64(n)) }
func (t *traffic) Received(n int) { t.received.Add(int64(n)) }

func TestTraffic(t *testing.T) { onEach(t, testTraffic) }

func testTraffic(t *testing.T, transport Transport) {
	var seen traffic
	f := newFixture(t, Options{Transport: transport, Traffic: &seen})
	addr := f.listen(t, Listener{})
	c := dial(t, addr, insecure.NewCredentials())
	if _, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "12345678"}); err != nil {
		t.Fatal(err)
	}
	// Field number and length, and the eight bytes; field number and the status.
	if seen.received.Load() != 10 || seen.sent.Load() != 2 {
		t.Errorf("received %d, sent %d bytes; want 10 and 2", seen.received.Load(), seen.sent.Load())
	}
}

func TestMessageTooLarge(t *testing.T) { onEach(t, testMessageTooLarge) }

func testMessageTooLarge(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport, MaxRecvBytes: 100})
	c := dial(t, f.listen(t, Listener{}), insecure.NewCredentials())
	_, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: strings.Repeat("x", 200)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v, want ResourceExhausted", err)
	}
}

func TestServeAfterStop(t *testing.T) { onEach(t, testServeAfterStop) }

func testServeAfterStop(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	f.Stop(t.Context())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Serve(Listener{Listener: l}); err != nil {
		t.Errorf("Serve after Stop: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error("the listener is still open")
	}
}

// An accept error that passes does not end the listener; one that stays does.
func TestAcceptErrors(t *testing.T) { onEach(t, testAcceptErrors) }

func testAcceptErrors(t *testing.T, transport Transport) {
	f := newFixture(t, Options{Transport: transport})
	broken := errors.New("broken")
	l := &failingListener{errs: []error{syscall.EMFILE, syscall.ENFILE, broken}}
	if err := f.Serve(Listener{Listener: l}); !errors.Is(err, broken) {
		t.Errorf("Serve returned %v", err)
	}
	if len(l.errs) != 0 {
		t.Errorf("%d errors were not met", len(l.errs))
	}
}

// closingListener tells when it has been closed.
type closingListener struct {
	net.Listener
	once   sync.Once
	closed chan struct{}
}

func (l *closingListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.closed) })
	return err
}

type failingListener struct{ errs []error }

func (l *failingListener) Accept() (net.Conn, error) {
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, err
}
func (l *failingListener) Close() error   { return nil }
func (l *failingListener) Addr() net.Addr { return memAddr("failing") }

// FuzzPeek: whatever the bytes and however they arrive, classification loses none.
func FuzzPeek(f *testing.F) {
	f.Add([]byte(preface+"rest"), 3)
	f.Add([]byte("GET / HTTP/1.1\r\n"), 1)
	f.Add([]byte("P"), 1)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		if len(data) == 0 || step <= 0 {
			return
		}
		c := &peeked{Conn: &trickle{data: data, step: step}}
		if _, err := c.isTLS(); err != nil {
			t.Fatal(err)
		}
		h2, err := c.isHTTP2()
		if err != nil {
			t.Fatal(err)
		}
		if want := bytes.HasPrefix(data, []byte(preface)); h2 != want {
			t.Errorf("isHTTP2 is %t for %q", h2, data)
		}
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
			t.Errorf("read back %q, %v; want %q", got, err, data)
		}
	})
}

// trickle delivers data in small steps.
type trickle struct {
	net.Conn
	data []byte
	step int
}

func (c *trickle) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.data[:min(c.step, len(c.data))])
	c.data = c.data[n:]
	return n, nil
}
