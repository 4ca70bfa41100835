package light

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	readBuffer = 64 << 10
	// What the server may send before it is told that it may send more: of one stream, and of the connection.
	streamWindow = 4 << 20
	connWindow   = 64 << 20
	// boldBytes is what sockets take even if the server reads nothing. While all requests that it has not answered are not
	// more than that, a write cannot wait for the server, and whoever begins a call, or reads answers, writes himself. That
	// spares the machine a switch between goroutines. Otherwise the writer writes, for a reader that waits for the server
	// to read, while the server waits for it to read, would wait forever.
	boldBytes = 16 << 10
	// maxUnwritten bounds the answers to a server that asks and does not read. Requests are bounded by its windows.
	maxUnwritten = 64 << 20
	// defaultWindow, defaultMaxFrame are what HTTP/2 gives before any settings.
	defaultWindow   = 65535
	defaultMaxFrame = 16 << 10
)

// Options say how a connection is made.
type Options struct {
	TLS      *tls.Config       // nil: plain text
	Metadata map[string]string // sent with every call
}

// Conn is one connection. It makes no other when it is lost: all its calls then end, and no further ones begin.
type Conn struct {
	nc     net.Conn
	wake   chan struct{} // tells the writer that there is something to write
	ready  chan struct{} // closed when the server's first settings have come
	closed chan struct{} // closed when the connection is over
	done   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	err      error      // why the connection is over
	leaving  bool       // the server takes no further calls
	reading  bool       // the reader is at work, and will see to the output when it is done
	writing  bool       // somebody writes, and will look again when he is done
	out      []byte     // to be written
	spare    []byte     // for what comes meanwhile
	pending  int        // bytes of requests that the server has not answered
	calls    map[uint32]*Call
	waiting  []*Call // for a stream, in their order
	blocked  []*Call // by a window
	nextID   uint32
	window   int64 // bytes that the server lets the connection send
	peer     peerSettings
	requests requestHeaders
	handled  []func() // called when a read has been handled

	// Used by the reading goroutine alone.
	arrived  time.Time // what is being read
	answers  answerHeaders
	consumed int
	block    []byte // of a header block that has not come completely
	blockOf  frame  // its first frame; its id is 0 when there is none
}

// peerSettings are the server's.
type peerSettings struct {
	initialWindow int64
	maxFrame      int64
	maxStreams    int
}

// Dial connects to an address, host:port, and waits until the server has said what it takes.
func Dial(ctx context.Context, address string, o Options) (*Conn, error) {
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if o.TLS != nil {
		scheme = "https"
		if nc, err = secure(ctx, nc, address, o.TLS); err != nil {
			return nil, err
		}
	}
	c := newConn(nc, scheme, address, o.Metadata)
	c.done.Go(c.read)  // ends with the connection; awaited by Close
	c.done.Go(c.write) // the same
	select {
	case <-c.ready: // before that it is not known how many calls the server takes at once
		return c, nil
	case <-c.closed:
		err = c.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.Close()
	return nil, fmt.Errorf("waiting for the server's settings: %w", err)
}

func secure(ctx context.Context, nc net.Conn, address string, cfg *tls.Config) (net.Conn, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{http2.NextProtoTLS}
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(address)
	}
	t := tls.Client(nc, cfg)
	err := t.HandshakeContext(ctx)
	if err == nil && t.ConnectionState().NegotiatedProtocol != http2.NextProtoTLS {
		err = errors.New("the server does not speak HTTP/2")
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("securing the connection: %w", err)
	}
	return t, nil
}

func newConn(nc net.Conn, scheme, authority string, metadata map[string]string) *Conn {
	c := &Conn{
		nc: nc, wake: make(chan struct{}, 1), ready: make(chan struct{}), closed: make(chan struct{}),
		calls: make(map[uint32]*Call), nextID: 1, window: defaultWindow,
		peer:     peerSettings{initialWindow: defaultWindow, maxFrame: defaultMaxFrame, maxStreams: math.MaxInt},
		requests: newRequestHeaders(scheme, authority, metadata),
		answers:  newAnswerHeaders(),
	}
	c.out = append(c.out, http2.ClientPreface...)
	settings := []http2.Setting{{ID: http2.SettingEnablePush, Val: 0}, {ID: http2.SettingInitialWindowSize, Val: streamWindow}}
	c.out = appendFrameHeader(c.out, settingBytes*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		c.out = appendSetting(c.out, s)
	}
	c.out = appendWindowUpdate(c.out, 0, connWindow-defaultWindow)
	c.wake <- struct{}{}
	return c
}

// Arrived tells a call's functions when what they are called for was read from the socket: all of one read has the same time.
func (c *Conn) Arrived() time.Time { return c.arrived }

// Handled has f called whenever all of a read has been handled, for what is better done once for many answers.
func (c *Conn) Handled(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handled = append(c.handled, f)
}

// Close closes the connection, ends all calls with Canceled and waits for its goroutines. It must not be called from
// within a call's functions.
func (c *Conn) Close() {
	c.fail(status.Error(codes.Canceled, "the connection was closed"))
	c.done.Wait()
}

// Abort is Close without waiting, and may be called from anywhere.
func (c *Conn) Abort() { c.fail(status.Error(codes.Canceled, "the connection was closed")) }

// fail ends the connection. The first reason stays. The reader ends the calls.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over(err)
}

// over is fail for who holds c.mu.
func (c *Conn) over(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	close(c.closed)
	c.nc.Close()
}

// written has the output written, unless the reader will see to it. The caller does not hold c.mu.
func (c *Conn) written() {
	c.mu.Lock()
	idle := c.reading || c.writing || len(c.out) == 0
	bold := c.pending <= boldBytes
	c.mu.Unlock()
	switch {
	case idle:
	case bold:
		c.flush()
	default:
		select {
		case c.wake <- struct{}{}:
		default: // it is awake and will look again
		}
	}
}

// write is the writer.
func (c *Conn) write() {
	for {
		select {
		case <-c.wake:
			c.flush()
		case <-c.closed:
			return
		}
	}
}

// flush writes what gathers in out, as much as there is at a time, unless somebody does.
func (c *Conn) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writing {
		return
	}
	c.writing = true
	defer func() { c.writing = false }()
	for len(c.out) > 0 && c.err == nil {
		batch := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.nc.Write(batch)
		c.mu.Lock()
		c.spare = batch
		if err != nil {
			c.over(status.Errorf(codes.Unavailable, "writing to the server: %v", err))
		}
	}
}

// read reads frames until the connection is over, and then ends its calls.
func (c *Conn) read() {
	c.fail(c.readFrames())
	c.mu.Lock()
	err, over := c.err, c.waiting
	for _, call := range c.calls {
		over = append(over, call)
	}
	c.waiting, c.calls = nil, nil
	for _, call := range over {
		call.open = false
	}
	c.mu.Unlock()
	for _, call := range over {
		call.End(err)
	}
}

func (c *Conn) readFrames() error {
	buf := make([]byte, readBuffer)
	have := 0
	for {
		n, err := c.nc.Read(buf[have:])
		if err != nil {
			if errors.Is(err, io.EOF) {
				return status.Error(codes.Unavailable, "the server closed the connection")
			}
			return status.Errorf(codes.Unavailable, "reading from the server: %v", err)
		}
		have += n
		c.arrived = time.Now()
		handled := c.setReading(true)
		rest, err := c.frames(buf[:have])
		for _, f := range handled {
			f()
		}
		c.setReading(false)
		if err != nil {
			return status.Errorf(codes.Unavailable, "from the server: %v", err)
		}
		have = copy(buf, rest)
	}
}

// setReading says whether the reader is at work. When it has done it, what it has caused to be written is.
// It returns whom to tell when a read has been handled.
func (c *Conn) setReading(reading bool) []func() {
	c.mu.Lock()
	c.reading = reading
	handled := c.handled
	c.mu.Unlock()
	if !reading {
		c.written()
	}
	return handled
}
