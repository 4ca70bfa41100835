package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// Server serves gRPC services and one HTTP handler on any number of listeners.
type Server struct {
	o Options
	// own is the transport; nil before Start, and when it is grpc-go's.
	own *own
	// native serves connections that speak only gRPC. shared serves gRPC streams on HTTP/2
	// connections that net/http owns: a server of its own, because grpc-go cannot stop such
	// streams gracefully.
	native, shared *grpc.Server
	http           *http.Server

	grpcConns, httpConns *handoff

	// inHTTP is held shared by every HTTP request, so that Stop can wait for them.
	inHTTP    sync.RWMutex
	httpEnded bool // guarded by inHTTP

	// serving counts goroutines started by the server; Stop waits for them.
	serving sync.WaitGroup

	mu sync.Mutex
	// Guarded by mu.
	listeners map[net.Listener]struct{}
	// Connections being classified. Guarded by mu.
	pending          map[net.Conn]struct{}
	started, stopped bool               // guarded by mu
	services         []service          // guarded by mu; fixed by Start
	handlers         map[string]Handler // by full method; guarded by mu; fixed by Start
	// stop is closed when stopped becomes true.
	stop chan struct{}
}

// NewServer returns a server without services and listeners. It panics if there is no such transport
// as o names.
func NewServer(o Options) *Server {
	o = o.withDefaults()
	if o.Transport != Coterie && o.Transport != GRPCGo {
		panic(fmt.Sprintf("rpc: there is no transport %q", o.Transport))
	}
	s := &Server{
		o:         o,
		grpcConns: newHandoff("grpc"),
		httpConns: newHandoff("http"),
		listeners: map[net.Listener]struct{}{},
		pending:   map[net.Conn]struct{}{},
		handlers:  map[string]Handler{},
		stop:      make(chan struct{}),
	}
	s.native = grpc.NewServer(append(s.grpcOptions(), grpc.Creds(newHandshaken()))...)
	s.shared = grpc.NewServer(s.grpcOptions()...)
	s.http = &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: o.ReadHeaderTimeout,
		IdleTimeout:       o.IdleTimeout,
		// What net/http would log are the mistakes of clients.
		ErrorLog: log.New(debugWriter{o.Logger}, "", 0),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: int(min(o.MaxConcurrentStreams, math.MaxInt32))},
	}
	return s
}

func (s *Server) grpcOptions() []grpc.ServerOption {
	o := s.o
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(o.MaxRecvBytes),
		grpc.MaxSendMsgSize(o.MaxSendBytes),
		grpc.MaxConcurrentStreams(o.MaxConcurrentStreams),
		grpc.ConnectionTimeout(o.HandshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.ForceServerCodecV2(newCodec(o.Traffic)),
	}
	if o.UnaryInterceptor != nil {
		opts = append(opts, grpc.UnaryInterceptor(o.UnaryInterceptor))
	}
	if o.StreamInterceptor != nil {
		opts = append(opts, grpc.StreamInterceptor(o.StreamInterceptor))
	}
	if o.KeepaliveMinTime > 0 {
		opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.KeepaliveMinTime}))
	}
	if o.KeepaliveInterval > 0 && o.KeepaliveTimeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: o.KeepaliveInterval, Timeout: o.KeepaliveTimeout,
		}))
	}
	return opts
}

// service is a service that has been registered.
type service struct {
	desc *grpc.ServiceDesc
	impl any
}

// RegisterService implements grpc.ServiceRegistrar. All services are registered before Start.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		panic("rpc: " + desc.ServiceName + " is registered after Start")
	}
	s.services = append(s.services, service{desc, impl})
}

// GetServiceInfo says what is registered, for gRPC's reflection service.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]grpc.ServiceInfo{}
	for _, svc := range s.services {
		info := grpc.ServiceInfo{Metadata: svc.desc.Metadata}
		for _, m := range svc.desc.Methods {
			info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
		}
		for _, m := range svc.desc.Streams {
			info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
		}
		out[svc.desc.ServiceName] = info
	}
	return out
}

// HandleUnary has h answer the calls of a unary method, /package.Service/Method, in place of the
// registered service. It is called before Start.
func (s *Server) HandleUnary(fullMethod string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		panic("rpc: a handler of " + fullMethod + " is set after Start")
	}
	s.handlers[fullMethod] = h
}

// Handle sets what answers requests that are not gRPC, in place of Options.HTTP: a handler may
// need this server's Dial first. It is called before Start.
func (s *Server) Handle(h http.Handler) { s.o.HTTP = h }

// Start begins to serve connections made in process by Dial. Listeners are added by Serve.
func (s *Server) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started || s.stopped {
		return
	}
	s.started = true
	checkHandlers(s.services, s.handlers)
	// This and native's loop below end when Stop closes the handoffs and servers; Stop waits.
	s.serving.Go(func() { _ = s.http.Serve(s.httpConns) })
	if s.o.Transport == Coterie {
		s.own = newOwn(&s.o, s.services, s.handlers)
		return
	}
	for _, svc := range s.services {
		desc := withHandlers(svc.desc, s.handlers)
		s.native.RegisterService(desc, svc.impl)
		s.shared.RegisterService(desc, svc.impl)
	}
	s.serving.Go(func() { _ = s.native.Serve(s.grpcConns) })
}

// Dial returns a client connection to this server that uses no socket.
func (s *Server) Dial(opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		if s.o.Transport == Coterie {
			if !s.serveInProcess(server) {
				return nil, net.ErrClosed
			}
			return client, nil
		}
		select {
		case s.grpcConns.conns <- server:
			return client, nil
		case <-s.grpcConns.done:
			return nil, net.ErrClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return grpc.NewClient("passthrough:///in-process", append([]grpc.DialOption{
		grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	}, opts...)...)
}

// serveInProcess serves the other end of a pipe. It returns false if the server is not running.
func (s *Server) serveInProcess(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil || s.stopped {
		return false
	}
	s.serving.Go(func() { s.own.serve(c, true) }) // ends with the connection; Stop waits
	return true
}

// Serve accepts from l until Stop, or until l fails; only then the error is not nil. It closes l.
func (s *Server) Serve(l Listener) error {
	s.Start()
	if l.TLS != nil {
		l.TLS = alpn(l.TLS)
	}
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		l.Close()
		return nil
	}
	s.listeners[l.Listener] = struct{}{}
	s.serving.Add(1) // under mu: Stop has not begun to wait
	s.mu.Unlock()
	defer s.serving.Done()
	defer func() {
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l.Listener)
		s.mu.Unlock()
	}()

	var slots chan struct{}
	if l.MaxConns > 0 {
		slots = make(chan struct{}, l.MaxConns)
	}
	for {
		if slots != nil {
			select {
			case slots <- struct{}{}:
			case <-s.stop:
				return nil
			}
		}
		c, err := s.accept(l)
		if c == nil {
			return err
		}
		p := &peeked{Conn: c}
		if slots != nil {
			p.closed = func() { <-slots }
		}
		s.spawnClassify(p, l)
	}
}

// accept returns the next connection; it waits out a shortage of file descriptors and the like.
// A nil connection ends the listener.
func (s *Server) accept(l Listener) (net.Conn, error) {
	const minPause, maxPause = 5 * time.Millisecond, time.Second
	pause := minPause
	for {
		c, err := l.Accept()
		if err == nil {
			return c, nil
		}
		select {
		case <-s.stop:
			return nil, nil
		default:
		}
		var ne net.Error
		//lint:ignore SA1019 Temporary is deprecated as a general notion, but is exact for accept errors.
		if !errors.As(err, &ne) || !ne.Temporary() {
			return nil, fmt.Errorf("accepting on %s: %w", l.Addr(), err)
		}
		s.o.Logger.Warn("cannot accept a connection, trying again",
			zap.Stringer("address", l.Addr()), zap.Duration("after", pause), zap.Error(err))
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-s.stop:
			t.Stop()
			return nil, nil
		}
		pause = min(2*pause, maxPause)
	}
}

// spawnClassify starts the goroutine that finds out what c speaks. It ends within
// HandshakeTimeout, or when Stop closes c.
func (s *Server) spawnClassify(c *peeked, l Listener) {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		c.Close()
		return
	}
	s.pending[c] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.serving.Done()
		to, conn, err := s.classify(c, l)
		s.mu.Lock()
		delete(s.pending, c)
		s.mu.Unlock()
		if err != nil {
			s.o.Logger.Debug("connection refused", zap.Stringer("remote", c.RemoteAddr()), zap.Error(err))
			if s.o.Refused != nil {
				s.o.Refused(c.RemoteAddr(), err)
			}
			c.Close()
			return
		}
		if to == s.grpcConns && s.own != nil {
			s.own.serve(conn, l.Protocols == GRPCOnly)
			return
		}
		to.deliver(conn)
	}()
}

// classify decides which server gets the connection.
func (s *Server) classify(c *peeked, l Listener) (*handoff, net.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)); err != nil {
		return nil, nil, err
	}
	secure := l.TLS != nil
	if secure && l.Plaintext {
		var err error
		if secure, err = c.isTLS(); err != nil {
			return nil, nil, err
		}
	}
	var to *handoff
	var conn net.Conn
	var err error
	if secure {
		to, conn, err = s.classifyTLS(c, l)
	} else {
		to, conn, err = s.classifyPlain(c, l)
	}
	if err != nil {
		return nil, nil, err
	}
	return to, conn, c.SetDeadline(time.Time{})
}

func (s *Server) classifyPlain(c *peeked, l Listener) (*handoff, net.Conn, error) {
	switch l.Protocols {
	case GRPCOnly:
		return s.grpcConns, c, nil
	case HTTPOnly:
		return s.httpConns, c, nil
	}
	h2, err := c.isHTTP2()
	if err != nil {
		return nil, nil, err
	}
	if h2 {
		return s.grpcConns, c, nil
	}
	if c.head[0] == handshakeRecord {
		return nil, nil, errors.New("TLS on a port without") // it would wait for an answer in TLS
	}
	return s.httpConns, c, nil
}

func (s *Server) classifyTLS(c *peeked, l Listener) (*handoff, net.Conn, error) {
	t := tls.Server(c, l.TLS)
	ctx, cancel := context.WithTimeout(context.Background(), s.o.HandshakeTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		var notTLS tls.RecordHeaderError
		if errors.As(err, &notTLS) && notTLS.Conn != nil && looksLikeHTTP(notTLS.RecordHeader) {
			_, _ = notTLS.Conn.Write([]byte("HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"))
		}
		return nil, nil, err
	}
	h2 := t.ConnectionState().NegotiatedProtocol == "h2"
	switch {
	case l.Protocols == GRPCOnly && !h2:
		return nil, nil, errors.New("gRPC over TLS needs ALPN to choose h2")
	case l.Protocols == GRPCOnly, l.Protocols == GRPCAndHTTP && h2 && (!c.alsoHTTP1 || s.own != nil):
		return s.grpcConns, t, nil
	}
	return s.httpConns, t, nil
}

func looksLikeHTTP(head [5]byte) bool {
	for _, method := range []string{"GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET"} {
		if string(head[:]) == method {
			return true
		}
	}
	return false
}

// serveHTTP tells gRPC streams from requests on connections that net/http owns.
func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.inHTTP.RLock()
	defer s.inHTTP.RUnlock()
	if s.httpEnded {
		return
	}
	if s.own == nil && r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.shared.ServeHTTP(w, r)
		return
	}
	s.o.HTTP.ServeHTTP(w, r)
}

// Stop ends the server in the order that the package comment gives. It is idempotent; every
// call returns only when the server has ended.
func (s *Server) Stop(ctx context.Context) {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.pending {
		c.Close()
	}
	own := s.own
	s.mu.Unlock()

	if err := s.http.Shutdown(ctx); err != nil {
		s.http.Close()
	}
	s.shared.Stop()
	s.httpConns.Close()
	s.inHTTP.Lock() // waits for handlers whose connections have just been cut
	s.httpEnded = true
	s.inHTTP.Unlock()

	drain, cut := s.native.GracefulStop, s.native.Stop
	if own != nil {
		drain, cut = own.drain, own.server.Close
	}
	graceful := make(chan struct{})
	// Ends when all requests have ended, which cut forces if they do not.
	go func() {
		defer close(graceful)
		drain()
	}()
	select {
	case <-graceful:
	case <-ctx.Done():
		cut()
		<-graceful
	}
	if own != nil {
		own.server.Close()
	}
	s.grpcConns.Close()
	s.serving.Wait()
}

// debugWriter passes net/http's error log on at debug level.
type debugWriter struct{ lg *zap.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.lg.Debug("http", zap.String("error", strings.TrimSpace(string(p))))
	return len(p), nil
}
