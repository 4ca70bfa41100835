package api

import (
	"context"
	"net"
	"time"
	"unicode/utf8"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
)

// caller is what is asked of a call, whichever way it has come.
type caller interface {
	Metadata(key string) (value string, ok bool)
	RemoteAddr() net.Addr
}

// contextCaller is the caller of a call of which there is a context.
type contextCaller struct{ ctx context.Context } //nolint:containedctx // it is what it wraps

// Metadata implements caller.
func (c contextCaller) Metadata(key string) (string, bool) {
	if vs := metadata.ValueFromIncomingContext(c.ctx, key); len(vs) > 0 {
		return vs[0], true
	}
	return "", false
}

// RemoteAddr implements caller. It is nil if nobody has said it.
func (c contextCaller) RemoteAddr() net.Addr {
	if p, ok := peer.FromContext(c.ctx); ok {
		return p.Addr
	}
	return nil
}

// InterceptUnary is a grpc.UnaryServerInterceptor: it admits, counts and times requests. There
// is one for all of that, because what it costs every request pays.
func (s *Server) InterceptUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	calls := s.metrics.rpc.of(info.FullMethod)
	calls.begin()
	start := time.Now()
	c := contextCaller{ctx}
	var resp any
	err := s.admit(c, "unary", req, info.FullMethod)
	if err == nil {
		resp, err = handler(ctx, req)
	}
	s.finish(calls, c, info.FullMethod, req, resp, start, err)
	return resp, err
}

// finish counts, times and logs a request whose answer is known and will be sent.
func (s *Server) finish(calls *callMetrics, c caller, method string, req, resp any, start time.Time, err error) {
	took := time.Since(start)
	calls.end(err, took)
	if err == nil {
		calls.sent.Inc()
	}
	if took > s.cfg.SlowRequest {
		s.logRequest(c, zapcore.WarnLevel, "request took long", method, req, resp, start, took, err)
	} else if s.log.Core().Enabled(zap.DebugLevel) {
		s.logRequest(c, zapcore.DebugLevel, "request", method, req, resp, start, took, err)
	}
}

// InterceptStream is a grpc.StreamServerInterceptor: it admits and counts streams, and gives
// the server the means to end them.
func (s *Server) InterceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	calls := s.metrics.rpc.of(info.FullMethod)
	calls.started.Inc()
	start := time.Now()
	err := s.runStream(srv, ss, info, handler, calls)
	calls.end(err, time.Since(start))
	return err
}

func (s *Server) runStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler, calls *callMetrics) error {
	c := contextCaller{ss.Context()}
	if err := s.admit(c, "stream", nil, info.FullMethod); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(nil)
	st := &stream{ServerStream: ss, ctx: ctx, cancel: cancel, calls: calls}
	if err := s.streams.add(st, requiresLeader(c)); err != nil {
		return err
	}
	defer s.streams.remove(st)
	return handler(srv, st)
}

// admit decides whether a call may be made of this member now.
func (s *Server) admit(c caller, kind string, req any, method string) error {
	st := s.node.Status()
	if st.IsLearner && !forLearner(req, method) {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	version := "unknown"
	if v, ok := c.Metadata(rpctypes.MetadataClientAPIVersionKey); ok {
		version = v
	}
	if !utf8.ValidString(version) {
		return rpctypes.ErrGRPCInvalidClientAPIVersion
	}
	s.metrics.clientRequest(kind, version)
	if st.Leader == 0 && requiresLeader(c) {
		return rpctypes.ErrGRPCNoLeader
	}
	return nil
}

// forLearner tells whether a member that does not vote answers a call.
func forLearner(req any, method string) bool {
	switch r := req.(type) {
	case *pb.StatusRequest:
		return true
	case *pb.RangeRequest:
		return r.Serializable
	}
	return method == pb.Maintenance_Snapshot_FullMethodName
}

func requiresLeader(c caller) bool {
	v, _ := c.Metadata(rpctypes.MetadataRequireLeaderKey)
	return v == rpctypes.MetadataHasLeader
}

func (s *Server) logRequest(c caller, level zapcore.Level, msg, method string, req, resp any, start time.Time, took time.Duration, err error) {
	remote := "unknown"
	if addr := c.RemoteAddr(); addr != nil {
		remote = addr.String()
	}
	fields := []zap.Field{
		zap.String("method", method), zap.String("remote", remote),
		zap.Time("start", start), zap.Duration("took", took),
	}
	if m, ok := req.(proto.Message); ok {
		fields = append(fields, zap.Int("request-bytes", proto.Size(m)))
	}
	if m, ok := resp.(proto.Message); ok && err == nil {
		fields = append(fields, zap.Int("response-bytes", proto.Size(m)))
	}
	if d := describe(req); d != "" {
		fields = append(fields, zap.String("request", d))
	}
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	s.log.Log(level, msg, fields...)
}

// describe returns a request's content as far as it may be logged: no values, no secrets.
func describe(req any) string {
	switch r := req.(type) {
	case *pb.RangeRequest:
		return r.String()
	case *pb.PutRequest:
		return pb.NewLoggablePutRequest(r).String()
	case *pb.DeleteRangeRequest:
		return r.String()
	case *pb.TxnRequest:
		return pb.NewLoggableTxnRequest(r).String()
	}
	return ""
}
