package peer

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Three members send one another messages; each arrives, in the order of its
// stream.
func TestOrder(t *testing.T) {
	const count = 500
	nodes := []*node{start(t, 1), start(t, 2), start(t, 3)}
	meet(t, nodes...)
	for i := range uint64(count) {
		for _, n := range nodes {
			for _, o := range nodes {
				if n != o {
					n.Send([]*raftpb.Message{bulk(n.id, o.id, i, 100), message(raftpb.MsgHeartbeat, n.id, o.id, i)})
				}
			}
		}
	}
	for _, n := range nodes {
		n.await("all messages", func() bool { return len(n.received) == 4*count })
		for _, typ := range []raftpb.MessageType{raftpb.MsgApp, raftpb.MsgHeartbeat} {
			from := make(map[uint64][]uint64)
			for _, m := range n.messages(typ) {
				from[m.GetFrom()] = append(from[m.GetFrom()], m.GetIndex())
			}
			for id, got := range from {
				if !reflect.DeepEqual(got, upTo(count)) {
					t.Errorf("%s from %x to %x came as %d", typ, id, n.id, got)
				}
			}
		}
	}
}

// An empty MsgApp must not overtake the entries before it.
func TestEmptyAppendsKeepTheirPlace(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	meet(t, a, b)
	const count = 200
	for i := range uint64(count) {
		m := bulk(1, 2, i, 20_000)
		if i%2 == 1 {
			m = message(raftpb.MsgApp, 1, 2, i)
		}
		a.Send([]*raftpb.Message{m})
	}
	b.await("all appends", func() bool { return len(b.received) == count })
	if got := indexes(b.messages(raftpb.MsgApp)); !reflect.DeepEqual(got, upTo(count)) {
		t.Errorf("came as %d", got)
	}
}

// A member that does not read holds up neither Send nor heartbeats nor other
// members; what waits for it is bounded, and raft is told of what was dropped.
func TestSlowReader(t *testing.T) {
	a, b, c := start(t, 1), start(t, 2), start(t, 3)
	meet(t, a, b, c)
	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo)
	b.note(func() {
		b.block = func(m *raftpb.Message) {
			if m.GetType() == raftpb.MsgApp {
				<-release
			}
		}
	})
	const size, count = 1 << 20, 120
	for i := range uint64(count) {
		a.Send([]*raftpb.Message{bulk(1, 2, i, size), bulk(1, 3, i, 10), message(raftpb.MsgHeartbeat, 1, 2, i)})
		for _, s := range a.Stats() {
			if s.QueuedBytes > maxQueuedEntries+maxQueuedControl {
				t.Fatalf("%d bytes are queued for member %x", s.QueuedBytes, s.ID)
			}
		}
	}
	a.await("the loss to be told", func() bool { return a.unreachable[2] > 0 })
	b.await("heartbeats past the bulk", func() bool { return len(b.received) == count })
	c.await("appends to another member", func() bool { return len(c.received) == count })
	letGo()
	dropped := uint64(0)
	for _, s := range a.Stats() {
		dropped += s.Dropped
	}
	a.mu.Lock()
	if dropped == 0 || a.unreachable[3] > 0 {
		t.Errorf("%d messages dropped, %d losses to the other member", dropped, a.unreachable[3])
	}
	a.mu.Unlock()
	b.await("what was not dropped", func() bool { return len(b.received) == 2*count-int(dropped) })
	if got := indexes(b.messages(raftpb.MsgApp)); !slices.IsSorted(got) {
		t.Errorf("came as %d", got)
	}
}

func TestQueueBounds(t *testing.T) {
	q := newQueue(1000)
	if !q.put(bulk(1, 2, 0, 5000)) {
		t.Error("an empty queue has no room for a large message")
	}
	if q.put(message(raftpb.MsgApp, 1, 2, 1)) {
		t.Error("there was room beyond the bytes")
	}
	if got := q.take(nil, 1); len(got) != 1 {
		t.Errorf("took %d messages", len(got))
	}
	q = newQueue(1 << 30)
	for round := range 3 { // around the ring
		n := 0
		for q.put(message(raftpb.MsgApp, 1, 2, uint64(n))) {
			n++
		}
		if n != maxQueued {
			t.Fatalf("round %d: %d messages found room", round, n)
		}
		got := q.take(nil, 1<<30)
		if !reflect.DeepEqual(indexes(got), upTo(maxQueued)) {
			t.Fatalf("round %d: wrong order", round)
		}
		if n, bytes := q.size(); n != 0 || bytes != 0 {
			t.Fatalf("round %d: %d messages, %d bytes are left", round, n, bytes)
		}
		for i := range 1000 {
			q.put(message(raftpb.MsgApp, 1, 2, uint64(i)))
		}
		if round%2 == 0 {
			q.take(nil, 1<<30)
		} else if n := q.clear(); n != 1000 {
			t.Fatalf("cleared %d", n)
		}
	}
}

// through makes nodes know n by the proxy.
func through(p *proxy, n *node, nodes ...*node) {
	for _, o := range nodes {
		o.Update([]Member{{n.id, []string{p.url()}}}, nil)
	}
}

// Connections that break lose messages, and raft is told. They are made anew,
// and nothing comes twice or out of order.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1), start(t, 2)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	through(p, b, a)
	b.Update([]Member{a.member()}, nil)
	connected(t, a, b)
	sent := uint64(0)
	for range 20 {
		a.forget()
		for range 50 {
			a.Send([]*raftpb.Message{bulk(1, 2, sent, 1000)})
			sent++
		}
		p.cut()
		a.await("the loss to be told", func() bool { return a.unreachable[2] > 0 })
		poll(t, "a new connection", func() bool { return !a.ActiveSince(2).IsZero() })
	}
	last := sent
	a.Send([]*raftpb.Message{bulk(1, 2, last, 1)})
	b.await("a message after the last cut", func() bool {
		return len(b.received) > 0 && b.received[len(b.received)-1].GetIndex() == last
	})
	got := indexes(b.messages(raftpb.MsgApp))
	if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
		t.Errorf("came as %d", got)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refused[2] != 0 {
		t.Error("a member whose host did not refuse is said to be gone")
	}
}

// quick makes timeouts short.
func quick(c *Config, _ *nodeSetup) {
	c.ReadTimeout, c.WriteTimeout = 200*time.Millisecond, 200*time.Millisecond
}

// A network that swallows everything is noticed without a message being sent,
// and the end of it too.
func TestSilence(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1, quick), start(t, 2, quick)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	through(p, b, a)
	b.Update([]Member{a.member()}, nil)
	connected(t, a, b)
	p.freeze()
	a.await("the silence to be noticed", func() bool { return a.unreachable[2] > 0 })
	poll(t, "both to see it", func() bool { return a.ActiveSince(2).IsZero() && b.ActiveSince(1).IsZero() })
	p.thaw()
	connected(t, a, b)
}

// A member is heard again soon after the network has healed, on new connections.
func TestDeadConnectionsAreMadeAnew(t *testing.T) {
	t.Parallel()
	patient := func(c *Config, _ *nodeSetup) { c.ReadTimeout, c.Patience = 10*time.Minute, 200*time.Millisecond }
	a, b := start(t, 1, patient), start(t, 2, patient)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	through(p, b, a)
	b.Update([]Member{a.member()}, nil)
	connected(t, a, b)
	p.bury()
	a.await("the silence to be noticed", func() bool { return a.unreachable[2] > 0 })
	connected(t, a, b)
	for _, typ := range []raftpb.MessageType{raftpb.MsgHeartbeat, raftpb.MsgApp} {
		poll(t, "a message on a new connection", func() bool {
			a.Send([]*raftpb.Message{message(typ, 1, 2, 7)}) // one may be lost with the old connection
			return len(b.messages(typ)) > 0
		})
	}
}

// Idle connections stay, for there are signs of life.
func TestIdle(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	trips := 0
	a, b := start(t, 1, quick, func(c *Config, _ *nodeSetup) {
		c.RoundTrip = func(to uint64, d time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			if to == 2 && d > 0 {
				trips++
			}
		}
	}), start(t, 2, quick)
	meet(t, a, b)
	since := a.ActiveSince(2)
	poll(t, "many pings", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return trips >= 8 // half a second: more than twice the timeout
	})
	if got := a.ActiveSince(2); got != since {
		t.Errorf("a connection of %s was replaced by one of %s", since, got)
	}
	if s := a.Stats(); len(s) != 1 || s[0].ID != 2 || s[0].RoundTrip <= 0 || s[0].Version != "v2" || s[0].SentBytes == 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A handler that takes its time with a bulk does not make the sender give up,
// as long as bytes come.
func TestSignsOfLifeInABulk(t *testing.T) {
	in := &inbound{peer: &remote{}, alive: time.Nanosecond}
	near, far := net.Pipe()
	defer near.Close()
	in.conn = timedConn{near, time.Second, time.Second}
	got := make(chan frameKind, 1)
	go func() {
		defer far.Close()
		_, _ = far.Write([]byte("bytes of a long frame"))
		kind, _, err := newFrameReader(far, 8).next()
		if err != nil {
			kind = 0
		}
		got <- kind
	}()
	if _, err := in.Read(make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if kind := <-got; kind != framePong {
		t.Errorf("the sender got a frame of kind %d", kind)
	}
}

// That nobody listened, which one stream found out before the other one was
// connected to a new process, is not said of that process.
func TestOutdatedRefusalIsNotTold(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1), start(t, 2)
	introduce(a, b)
	connected(t, a, b)
	r := a.Transport.remote(2)
	s := r.streams[entries]
	refusal := errors.Join(&endpointError{err: &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}})
	if !allGone(refusal) {
		t.Fatal("the error does not say that the process is gone")
	}
	told := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.refused[2]
	}
	s.failed(refusal, false, r.connected()-1)
	if n := told(); n != 0 {
		t.Errorf("told %d times of a process that was connected to since", n)
	}
	for range 2 {
		s.failed(refusal, false, r.connected())
	}
	if n := told(); n != 1 {
		t.Errorf("told %d times of a process that is gone", n)
	}
}

// A process that is gone is told once for each time it was there; when it is
// back its member is served again.
func TestRestart(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1), start(t, 2)
	meet(t, a, b)
	for round := range 3 {
		host := strings.TrimPrefix(b.url, "http://")
		b.stop()
		a.await("the process to be told gone", func() bool { return a.refused[2] == 1 })
		if s := a.Stats()[0]; s.Disconnects != uint64(round+1) {
			t.Errorf("%d disconnects after %d stops", s.Disconnects, round+1)
		}
		// Two more attempts, and it is not told again.
		failures := a.Stats()[0].SendFailures
		poll(t, "more attempts", func() bool { return a.Stats()[0].SendFailures >= failures+4 })
		l, err := net.Listen("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		b = start(t, 2, on(l))
		introduce(a, b)
		connected(t, a, b)
		a.mu.Lock()
		if a.refused[2] != 1 {
			t.Errorf("told %d times", a.refused[2])
		}
		a.mu.Unlock()
		a.forget()
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 7)})
		b.await("a heartbeat", func() bool { return len(b.received) == 1 })
	}
}

// Who dials us is there: the pause before dialling it ends.
func TestPauseIsCutShort(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	r := newRemote(a.Transport, 2, nil, false) // its streams do not run
	a.Transport.mu.Lock()
	a.peers[2] = r
	a.Transport.mu.Unlock()
	b.Update([]Member{a.member()}, nil)
	for _, s := range r.streams {
		if !s.wait(t.Context(), patience) {
			t.Errorf("the pause of the stream of %s was not cut short", s.kind)
		}
	}
}

func TestMembershipChanges(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	a.grace = 50 * time.Millisecond
	meet(t, a, b)

	// Its URL changes: it is dialled where it is now.
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	through(p, b, a)
	poll(t, "bytes on the new way", func() bool { return p.count.Load() > 0 })
	connected(t, a, b)

	// It leaves, and returns within its grace: nothing changes.
	since := a.ActiveSince(2)
	a.Update(nil, nil)
	through(p, b, a)
	ran := time.NewTimer(3 * a.grace)
	<-ran.C // nothing may happen for longer than the grace
	if got := a.ActiveSince(2); got != since {
		t.Errorf("the connections of %s were replaced by some of %s", since, got)
	}

	// It leaves for good: what is queued arrives, and then it is told so.
	a.Update([]Member{a.member()}, func(id uint64) bool { return id == 2 })
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 42)})
	b.await("the last message", func() bool { return len(b.received) == 1 })
	b.await("its removal to be told", func() bool { return b.removed == 1 })
	poll(t, "its streams to end", func() bool { return len(a.Stats()) == 0 })
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 43)})
	a.await("the loss to be told", func() bool { return a.unreachable[2] > 0 })
}

// A sender that is not in the list of members is served and answered where it
// says that it is, and forgotten when it goes.
func TestUnknownSender(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	a.Update([]Member{b.member()}, nil)
	b.Update([]Member{b.member()}, nil)
	connected(t, a, b)
	a.Send([]*raftpb.Message{message(raftpb.MsgVote, 1, 2, 1)})
	b.await("a vote's request", func() bool { return len(b.received) == 1 })
	b.Send([]*raftpb.Message{message(raftpb.MsgVoteResp, 2, 1, 2)})
	a.await("the answer", func() bool { return len(a.received) == 1 })
	b.Update([]Member{b.member()}, nil) // does not know it still
	if b.ActiveSince(1).IsZero() {
		t.Error("a sender was forgotten while it was there")
	}
	a.stop()
	poll(t, "the sender to be forgotten", func() bool { return len(b.Stats()) == 0 })
}

// dialRaw opens a stream by hand and returns the answer.
func dialRaw(t *testing.T, n *node, h http.Header) (*http.Response, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	req, err := http.NewRequest(http.MethodGet, n.url+pathStream, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	if err := req.Write(c); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		t.Fatal(err)
	}
	return res, c
}

func rawGreeting(from, to uint64, urls ...string) http.Header {
	g := greeting{cluster: testCluster, from: from, to: to, urls: urls}
	h := g.header()
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocol)
	h.Set(headerStream, "control")
	return h
}

func TestRefusals(t *testing.T) {
	n := start(t, 5)
	n.Update(nil, func(id uint64) bool { return id == 9 })
	for _, c := range []struct {
		name   string
		change func(h http.Header)
		status int
		text   []string
	}{
		{"foreign cluster", func(h http.Header) { h.Set(headerCluster, "abc") }, 412, []string{"cluster abc", "cluster c1", "--initial-cluster-token"}},
		{"another member", func(h http.Header) { h.Set(headerTo, "6") }, 412, []string{"this is member 5", "member 6", "--initial-advertise-peer-urls"}},
		{"itself", func(h http.Header) { h.Set(headerFrom, "5") }, 412, []string{"data directory"}},
		{"removed", func(h http.Header) { h.Set(headerFrom, "9") }, 410, []string{"member 9 has been removed"}},
		{"other protocol", func(h http.Header) { h.Set("Upgrade", "coterie-raft/2") }, 426, []string{"coterie-raft/1", `"coterie-raft/2"`}},
		{"no upgrade", func(h http.Header) { h.Del("Upgrade"); h.Del("Connection") }, 426, []string{"coterie-raft/1"}},
		{"no id", func(h http.Header) { h.Del(headerFrom) }, 400, []string{headerFrom}},
		{"stream", func(h http.Header) { h.Set(headerStream, "gossip") }, 400, []string{"gossip"}},
		{"too many URLs", func(h http.Header) { h.Set(headerURLs, strings.Repeat("http://a:1,", 20)) }, 400, []string{headerURLs}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := rawGreeting(1, 5)
			c.change(h)
			res, _ := dialRaw(t, n, h)
			no, removed := refusedBy(res, testCluster)
			if no.status != c.status {
				t.Errorf("status %d", no.status)
			}
			for _, part := range c.text {
				if !strings.Contains(no.text, part) {
					t.Errorf("%q does not mention %q", no.text, part)
				}
			}
			if removed != (c.status == 410) {
				t.Errorf("removed: %t", removed)
			}
		})
	}
	if s := n.Stats(); len(s) != 0 {
		t.Errorf("who was refused is remembered: %+v", s)
	}
}

// An answer without end costs neither memory nor time without end.
func TestEndlessAnswer(t *testing.T) {
	l := listen(t)
	defer l.Close()
	sent := make(chan int, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		n, _ := fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\n")
		for err == nil {
			var more int
			more, err = fmt.Fprintf(c, "X-%d: %s\r\n", n, strings.Repeat("x", 1000))
			n += more
		}
		sent <- n
	}()
	e, err := parseEndpoint("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, err = dialer{nil, patience, patience, patience}.open(t.Context(), e, http.MethodGet, "/", http.Header{})
	if err == nil || isTimeout(err) {
		t.Errorf("taken, or not bounded: %v", err)
	}
	<-sent
}

// A refusal is logged once, however often it is given, and one of a removal
// counts only in the name of the own cluster.
func TestRefusalsAreTold(t *testing.T) {
	for _, c := range []struct {
		name    string
		refuser func(c *Config, s *nodeSetup)
		update  func(id uint64) bool
		text    string
		removed int
	}{
		{"removed", nil, func(id uint64) bool { return id == 1 }, "removed", 1},
		{"foreign", func(c *Config, _ *nodeSetup) { c.ClusterID = 0xc2 }, func(id uint64) bool { return id == 1 }, "cluster c2", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			core, logs := observer.New(zap.WarnLevel)
			a := start(t, 1, func(cfg *Config, _ *nodeSetup) { cfg.Logger = zap.New(core) })
			options := []nodeOption{}
			if c.refuser != nil {
				options = append(options, c.refuser)
			}
			b := start(t, 2, options...)
			b.Update(nil, c.update)
			a.Update([]Member{b.member()}, nil)
			poll(t, "several refusals", func() bool { return a.Stats()[0].SendFailures >= 6 })
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.removed != c.removed {
				t.Errorf("told of its removal %d times", a.removed)
			}
			if n := logs.Len(); n != 1 {
				t.Errorf("%d lines were logged: %v", n, logs.All())
			}
			if got := fmt.Sprint(logs.All()[0].ContextMap()["error"]); !strings.Contains(got, c.text) {
				t.Errorf("logged %q", got)
			}
		})
	}
}

// There is no more room for unknown senders than the bound, and each finds its
// place again when it has gone.
func TestTooManyUnknownSenders(t *testing.T) {
	n := start(t, 5)
	var conns []net.Conn
	for i := range uint64(maxStrangers) {
		res, c := dialRaw(t, n, rawGreeting(100+i, 5, "http://127.0.0.1:1"))
		if res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("sender %d: %s", i, res.Status)
		}
		conns = append(conns, c)
	}
	if res, _ := dialRaw(t, n, rawGreeting(99, 5)); res.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one too many: %s", res.Status)
	}
	conns[3].Close()
	poll(t, "one to be forgotten", func() bool { return len(n.Stats()) < maxStrangers })
	if res, _ := dialRaw(t, n, rawGreeting(99, 5)); res.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("after one has gone: %s", res.Status)
	}
}

// A new stream takes the place of the one before it of the same kind.
func TestStreamIsReplaced(t *testing.T) {
	n := start(t, 5)
	res, first := dialRaw(t, n, rawGreeting(7, 5))
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res.Status)
	}
	frame, err := appendMessage(nil, message(raftpb.MsgHeartbeat, 7, 5, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Write(frame); err != nil {
		t.Fatal(err)
	}
	n.await("a message on the first", func() bool { return len(n.received) == 1 })
	res, second := dialRaw(t, n, rawGreeting(7, 5))
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res.Status)
	}
	_ = first.SetReadDeadline(time.Now().Add(patience))
	if _, err := first.Read(make([]byte, 1)); err == nil || errors.Is(err, net.ErrClosed) || isTimeout(err) {
		t.Errorf("the first stream is still there: %v", err)
	}
	if _, err := second.Write(frame); err != nil {
		t.Fatal(err)
	}
	n.await("a message on the second", func() bool { return len(n.received) == 2 })
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// What a stream must not carry ends it.
func TestMisuse(t *testing.T) {
	frame := func(m *raftpb.Message) []byte {
		b, err := appendMessage(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	good := frame(message(raftpb.MsgHeartbeat, 7, 5, 1))
	damaged := slices.Clone(good)
	damaged[len(damaged)-1] ^= 1
	for name, bytes := range map[string][]byte{
		"damage":             damaged,
		"garbage":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"a local message":    frame(message(raftpb.MsgHup, 7, 5, 1)),
		"a bare snapshot":    frame(message(raftpb.MsgSnap, 7, 5, 1)),
		"for another member": frame(message(raftpb.MsgHeartbeat, 7, 6, 1)),
		"unknown kind":       appendFrame(nil, 77, nil),
		"short ping":         appendFrame(nil, framePing, []byte{1}),
		"no protobuf":        appendFrame(nil, frameMessage, []byte{0xff}),
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, 5)
			res, c := dialRaw(t, n, rawGreeting(7, 5))
			if res.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(res.Status)
			}
			if _, err := c.Write(bytes); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(patience))
			if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
				t.Errorf("the stream goes on: %v", err)
			}
			if len(n.messages(raftpb.MsgHeartbeat)) > 0 {
				t.Error("a message was received")
			}
		})
	}
}

// security makes a certificate for loopback and returns the configurations of
// both sides.
func security(t testing.TB) (server *tls.Config, dial func() (*tls.Config, error)) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	own := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return &tls.Config{Certificates: own, NextProtos: []string{"h2", "http/1.1"}},
		func() (*tls.Config, error) { return &tls.Config{RootCAs: pool}, nil }
}

// exchange sends a message, a call and a snapshot from a to b.
func exchange(t *testing.T, a, b *node) {
	t.Helper()
	meet(t, a, b)
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, a.id, b.id, 1)})
	b.await("a message", func() bool { return len(b.received) == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := a.Call(ctx, b.id, "echo", []byte("x")); err != nil || string(out) != "x" {
		t.Errorf("call: %q, %v", out, err)
	}
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 10})
	a.Send([]*raftpb.Message{message(raftpb.MsgSnap, a.id, b.id, 0)})
	a.await("the snapshot", func() bool { return slices.Equal(a.sent[b.id], []bool{true}) })
}

func echo(n *node) {
	n.Handle("echo", func(_ context.Context, in []byte) ([]byte, error) { return in, nil })
}

func TestTLS(t *testing.T) {
	server, dial := security(t)
	secure := func(c *Config, s *nodeSetup) { c.DialTLS, s.tls = dial, server }
	a, b := start(t, 1, secure), start(t, 2, secure)
	echo(b)
	exchange(t, a, b)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := Fetch(ctx, []string{b.url}, time.Second, nil); err == nil || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("without TLS: %v", err)
	}
}

// Certificates that cannot be loaded, or that are not trusted, do not look like
// a process that is gone.
func TestTLSFailures(t *testing.T) {
	server, _ := security(t)
	_, foreign := security(t)
	for name, dial := range map[string]func() (*tls.Config, error){
		"untrusted":   foreign,
		"not loaded":  func() (*tls.Config, error) { return nil, fmt.Errorf("open the certificate: %w", errNoFile) },
		"no settings": nil,
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, 1, func(c *Config, _ *nodeSetup) { c.DialTLS = dial })
			b := start(t, 2, func(_ *Config, s *nodeSetup) { s.tls = server })
			a.Update([]Member{b.member()}, nil)
			poll(t, "attempts", func() bool { return a.Stats()[0].SendFailures >= 4 })
			a.mu.Lock()
			defer a.mu.Unlock()
			if len(a.refused) > 0 || !a.ActiveSince(2).IsZero() {
				t.Errorf("refused %v, active since %s", a.refused, a.ActiveSince(2))
			}
		})
	}
}

func TestUnixSockets(t *testing.T) {
	server, dial := security(t)
	for _, scheme := range []string{"unix", "unixs"} {
		t.Run(scheme, func(t *testing.T) {
			dir := t.TempDir()
			socket := func(id uint64) nodeOption {
				return func(c *Config, s *nodeSetup) {
					path := filepath.Join(dir, fmt.Sprint(id))
					l, err := net.Listen("unix", path)
					if err != nil {
						t.Fatal(err)
					}
					s.listener, s.url = l, scheme+"://"+path
					if scheme == "unixs" {
						s.tls, c.DialTLS = server, dial
					}
				}
			}
			a, b := start(t, 1, socket(1)), start(t, 2, socket(2))
			echo(b)
			exchange(t, a, b)
			b.stop()
			a.await("the process to be told gone", func() bool { return a.refused[2] == 1 })
		})
	}
}

func TestParseEndpoint(t *testing.T) {
	for _, c := range []struct {
		url  string
		want endpoint
		name string
		err  string
	}{
		{"http://10.0.0.1:2380", endpoint{"tcp", "10.0.0.1:2380", false}, "10.0.0.1", ""},
		{"https://[::1]:2380", endpoint{"tcp", "[::1]:2380", true}, "::1", ""},
		{"unix://m0:1", endpoint{"unix", "m0:1", false}, "m0", ""},
		{"unixs:///run/m0", endpoint{"unix", "/run/m0", true}, "localhost", ""},
		{"unixs://host/m0", endpoint{"unix", "host/m0", true}, "host", ""},
		{"http://10.0.0.1", endpoint{}, "", "port"},
		{"ftp://10.0.0.1:1", endpoint{}, "", "scheme"},
		{"unix://", endpoint{}, "", "host"},
		{"http://a b:1", endpoint{}, "", "peer URL"},
	} {
		got, err := parseEndpoint(c.url)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v", c.url, err)
			}
			continue
		}
		if err != nil || got != c.want || got.serverName() != c.name || got.String() != c.url {
			t.Errorf("%s: %+v, server %q, %v", c.url, got, got.serverName(), err)
		}
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no handler": {ClusterID: 1, MemberID: 1},
		"no ids":     {Handler: &node{}, Snapshots: &fakeSnapshots{}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
