package h2

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a connection.
//
// One goroutine reads, and handles what it has read in a row. Nothing else decodes frames. (Another
// one takes over from it for good when what After was given takes long.) What
// is written is framed under mu, in the order in which it is to be sent, and written by whoever
// gets to it: the reader after what it has read, the flusher, or a goroutine that waits for the
// socket when that is full.
type Conn struct {
	s       *Server
	nc      net.Conn
	socket  syscall.RawConn // nil: nc alone is used
	tls     *tls.ConnectionState
	local   any
	flusher *flusher

	// Of the reading goroutine.
	in          []byte // nil while nothing is in it
	r, w        int    // of in: handled, and read
	arriving    int    // which part of the handshake is awaited
	headers     *headerReader
	lastID      uint32 // of streams opened
	block       header // that continues
	recvCredit  int    // bytes that have come, and that the peer was not allowed again
	lastPing    time.Time
	pingStrikes int
	failed      bool // nothing is handled any more
	after       func(late func())

	// batch is set while the reader handles what it has read: it flushes afterwards.
	batch atomic.Bool
	// away is odd while the reader does what After was given.
	away    atomic.Uint64
	late    func()        // c.relieve
	done    chan struct{} // closed when reading has ended, if not by the goroutine that began it
	readErr error         // readable then
	// heard is when something was last read, in nanoseconds after began.
	heard atomic.Int64
	began time.Time

	mu sync.Mutex
	// Guarded by mu.
	table     table
	opened    [32]openedStream // recently, by half the id
	free      []*Stream
	running   int // streams that goroutines of the Handler have
	abandoned int // streams that the Handler has and that have ended
	paused    bool
	released  sync.Cond // what pause waits for, running has shrunk, or closed
	heldBytes int       // in Stream.whole and Stream.in

	encoder    encoder
	out        []byte // framed; nil while empty
	controls   int    // bytes of out that answer control frames
	writing    bool
	scheduled  bool // for the flusher
	sentData   bool // since the last ping: pings that come with it are no offence
	sendWindow int
	initial    int // send window of streams
	looks      int // at streams that the peer may still cause by changing initial
	ready      queue
	unsent     int       // bytes in Stream.unsent
	room       sync.Cond // unsent has shrunk, or closed

	goingAway, goneAway bool      // told that it goes; told after which stream
	lastTaken           uint32    // stream
	goneAt              time.Time // when goneAway comes at the latest
	finishing           bool      // all has been framed: hang up when it is written
	lingering           bool
	closed              bool
	closeErr            error

	timer   *time.Timer // keepalive, deadlines, and the like
	timerAt time.Time
	lookAt  time.Time // at deadlines again, at the earliest
	pinged  time.Time // the last ping of keepalive
	writers sync.WaitGroup

	// Of whoever has set writing.
	try struct {
		once  func(fd uintptr) bool // writes what the socket takes of bytes
		bytes []byte
		n     int
		err   error
	}
	// Of the reading goroutine.
	reading struct {
		once func(fd uintptr) bool // reads and handles what the socket has
		err  error
	}
}

// openedStream remembers how a stream ended.
type openedStream struct {
	id   uint32
	done bool // the peer had said its last
}

// header is a header block that continues in further frames.
type header struct {
	stream    uint32
	end, self bool
	frames    int
	bytes     []byte
}

// Parts of the handshake.
const (
	awaitPreface = iota
	awaitSettings
	established
)

const readBuffer = 32 << 10

var readBuffers = sync.Pool{New: func() any { return new([readBuffer]byte) }}

func newConn(s *Server, nc net.Conn, o ConnOptions) *Conn {
	c := &Conn{
		s: s, nc: nc, tls: o.TLS, local: o.Local,
		flusher:    s.flushers[int(s.next.Add(1))%len(s.flushers)],
		headers:    newHeaderReader(s.cfg.Varying, s.cfg.MaxHeaderBytes),
		sendWindow: defaultWindow, initial: defaultWindow, looks: freeLooks,
		began: time.Now(),
		done:  make(chan struct{}),
	}
	c.late = c.relieve
	c.released.L, c.room.L = &c.mu, &c.mu
	if useSockets && o.Socket != nil {
		if rc, err := o.Socket.SyscallConn(); err == nil {
			c.socket = rc
			c.try.once, c.reading.once = c.writeOnce, c.readOnce
		}
	}
	if len(o.Head) > 0 {
		c.in = readBuffers.Get().(*[readBuffer]byte)[:]
		c.w = copy(c.in, o.Head)
	}
	return c
}

// serve reads until the connection ends, and waits for the Handler.
func (c *Conn) serve() error {
	cfg := &c.s.cfg
	c.mu.Lock()
	if !c.closed {
		_ = c.nc.SetDeadline(time.Time{})
		_ = c.nc.SetReadDeadline(time.Now().Add(cfg.HandshakeTimeout))
	}
	settings := []setting{
		{settingInitialWindow, uint32(cfg.StreamWindow)},
		{settingMaxHeaderList, uint32(cfg.MaxHeaderBytes)},
	}
	if cfg.MaxStreams < 1<<32-1 {
		settings = append(settings, setting{settingMaxStreams, cfg.MaxStreams})
	}
	c.out = appendSettings(c.buffer(), settings...)
	c.out = appendWindowUpdate(c.out, 0, uint32(cfg.ConnWindow-defaultWindow))
	c.timer = time.AfterFunc(time.Hour, c.tick)
	c.timerAt = c.began.Add(time.Hour)
	c.wakeAt(time.Now().Add(cfg.KeepaliveInterval))
	c.mu.Unlock()
	c.flush()

	err := c.arrived(0) // what has been read before
	if err == nil {
		err = c.read()
	}
	if err == errRelieved {
		<-c.done
		err = c.readErr
	}
	c.cut(err)
	c.mu.Lock()
	c.timer.Stop()
	for c.running > 0 {
		c.released.Wait()
	}
	err = c.closeErr
	c.mu.Unlock()
	c.writers.Wait()
	if closeErr := c.nc.Close(); err == nil {
		err = closeErr
	}
	return err
}

// read reads and handles until there is an error.
func (c *Conn) read() error {
	for {
		if c.after != nil && !c.doAfter() {
			return errRelieved
		}
		if err := c.readSome(); err != nil {
			return err
		}
	}
}

// readSome reads and handles, once at least, until there is an error or c.after is set.
func (c *Conn) readSome() error {
	if c.socket != nil {
		return c.readSocket()
	}
	c.prepare()
	n, err := c.nc.Read(c.in[c.w:])
	if n > 0 {
		if err := c.arrived(n); err != nil {
			return err
		}
	}
	if c.after != nil {
		return nil // an error comes again
	}
	return err
}

// errRelieved: another goroutine has taken over reading.
var errRelieved = errors.New("h2: relieved")

// doAfter does what After was given. It reports false if somebody else reads by now.
func (c *Conn) doAfter() bool {
	f := c.after
	c.after = nil
	me := c.away.Add(1)
	f(c.late)
	if !c.away.CompareAndSwap(me, me+1) {
		return false
	}
	c.batch.Store(false)
	c.flush()
	return true
}

// relieve has another goroutine read while the reader is away.
func (c *Conn) relieve() {
	if away := c.away.Load(); away%2 == 0 || !c.away.CompareAndSwap(away, away+1) {
		return // it is back
	}
	c.batch.Store(false)
	c.flush()
	c.writers.Add(1)
	go func() { // ends with the connection; serve waits
		defer c.writers.Done()
		if err := c.read(); err != errRelieved {
			c.readErr = err
			c.cut(err) // who began to read may not be back for long
			close(c.done)
		}
	}()
}

// prepare makes room for reading.
func (c *Conn) prepare() {
	if c.in == nil {
		c.in = readBuffers.Get().(*[readBuffer]byte)[:]
	}
}

// tidy moves what is not handled to the front, and gives an empty buffer back.
func (c *Conn) tidy() {
	switch {
	case c.in == nil:
	case c.r == c.w:
		readBuffers.Put((*[readBuffer]byte)(c.in))
		c.in, c.r, c.w = nil, 0, 0
	case c.r > 0:
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
}

// arrived handles n bytes that have been read into c.in.
func (c *Conn) arrived(n int) error {
	c.w += n
	c.heard.Store(int64(time.Since(c.began)))
	c.batch.Store(true)
	err := c.handleAll()
	if c.after == nil || err != nil {
		c.batch.Store(false)
		c.flush()
	}
	c.tidy()
	return err
}

// handleAll handles all complete frames.
func (c *Conn) handleAll() error {
	for {
		if c.failed {
			c.r = c.w
			return nil
		}
		err := c.handleNext()
		if err == nil {
			continue
		}
		if err == errIncomplete {
			return nil
		}
		var se streamError
		var ce connError
		switch {
		case errors.As(err, &se):
			c.mu.Lock()
			if s := c.table.get(se.stream); s != nil {
				c.reset(s, se.code, ErrReset)
			} else {
				c.control(appendReset(nil, se.stream, se.code))
			}
			c.mu.Unlock()
		case errors.As(err, &ce):
			if c.arriving == awaitPreface {
				return err // it does not speak HTTP/2
			}
			c.fail(ce)
		default:
			return err
		}
	}
}

// errIncomplete: the rest of a frame has not come.
var errIncomplete = errors.New("incomplete")

func (c *Conn) handleNext() error {
	b := c.in[c.r:c.w]
	if c.arriving == awaitPreface {
		n := min(len(b), len(Preface))
		if string(b[:n]) != Preface[:n] {
			return connError{Protocol, "no preface"}
		}
		if n < len(Preface) {
			return errIncomplete
		}
		c.r += n
		c.arriving = awaitSettings
		return nil
	}
	if len(b) < frameHeaderLen {
		return errIncomplete
	}
	f := parseFrameHeader(b)
	if f.length > maxFrame {
		return connError{FrameSize, "a frame that is too large"}
	}
	if len(b) < frameHeaderLen+f.length {
		return errIncomplete
	}
	f.payload = b[frameHeaderLen : frameHeaderLen+f.length]
	c.r += frameHeaderLen + f.length
	if c.arriving == awaitSettings {
		if f.kind != frameSettings || f.has(flagAck) {
			return connError{Protocol, "the first frame is not SETTINGS"}
		}
		c.established()
	}
	return c.handle(&f)
}

// established ends the handshake's time limit.
func (c *Conn) established() {
	c.arriving = established
	c.mu.Lock()
	if !c.closed {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	c.mu.Unlock()
}

// ended tells whether the connection has been cut.
func (c *Conn) ended() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// cut ends the connection at once. The reader closes it.
func (c *Conn) cut(err error) {
	c.mu.Lock()
	c.cutLocked(err)
	c.mu.Unlock()
}

func (c *Conn) cutLocked(err error) {
	if c.closed {
		return
	}
	c.closed = true
	if c.closeErr == nil && !isHangUp(err) && !c.lingering {
		c.closeErr = err
	}
	c.endAll()
	c.out, c.controls = nil, 0
	_ = c.nc.SetDeadline(time.Unix(1, 0)) // reads and writes under way return
	c.released.Broadcast()
	c.room.Broadcast()
}

// endAll ends all streams.
func (c *Conn) endAll() {
	var all []*Stream
	c.table.each(func(s *Stream) { all = append(all, s) })
	for _, s := range all {
		c.end(s, ErrClosed)
	}
}

// fail tells the peer what it has done wrong, and ends the connection when that is written, or
// when the peer has had the time to read it.
func (c *Conn) fail(e connError) {
	c.failed = true
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.lingering {
		return
	}
	if c.closeErr == nil {
		c.closeErr = e
	}
	c.endAll()
	c.goAway(c.lastID, e.code, e.reason)
	c.finishing = true
	_ = c.nc.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// isHangUp tells whether err is how connections usually end.
func isHangUp(err error) bool {
	return err == nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, ErrClosed) ||
		errors.Is(err, io.ErrClosedPipe)
}
