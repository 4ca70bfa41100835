package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

var errNoFile = fs.ErrNotExist

// makeSnapshot writes files of the given sizes.
func makeSnapshot(t testing.TB, sizes map[string]int) *Snapshot {
	t.Helper()
	s := &Snapshot{
		Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(77), Term: proto.Uint64(3), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}},
		Dir:      t.TempDir(),
	}
	r := rand.New(rand.NewPCG(1, 2))
	for name, size := range sizes {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if err := os.WriteFile(filepath.Join(s.Dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s.Files = append(s.Files, name)
	}
	slices.Sort(s.Files)
	return s
}

func snapshotMessage(from, to uint64) *raftpb.Message {
	m := message(raftpb.MsgSnap, from, to, 0)
	m.Term = proto.Uint64(4)
	m.Snapshot = &raftpb.Snapshot{Data: []byte("not to be sent"), Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(50), Term: proto.Uint64(3)}}
	return m
}

func TestSnapshot(t *testing.T) {
	sent, received := make(chan uint64, 1), make(chan uint64, 1)
	a := start(t, 1, func(c *Config, _ *nodeSetup) { c.SendTook = func(to uint64, d time.Duration) { sent <- to } })
	b := start(t, 2, func(c *Config, _ *nodeSetup) { c.ReceiveTook = func(from uint64, d time.Duration) { received <- from } })
	meet(t, a, b)
	files := map[string]int{
		"empty": 0, "small": 10, "piece": snapshotPiece, "more": snapshotPiece + 1, "large": flushEvery + 3<<20, "MANIFEST-000001": 100,
	}
	for i := range 2 * syncTogether {
		files[fmt.Sprintf("many%03d", i)] = i
	}
	s := makeSnapshot(t, files)
	a.snapshots.give = s
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("the snapshot to be sent", func() bool { return slices.Equal(a.sent[2], []bool{true}) })
	got := b.snapshots
	got.mu.Lock()
	defer got.mu.Unlock()
	if len(got.begun) != 1 || got.begun[0].GetIndex() != 77 || len(got.aborted) != 0 {
		t.Errorf("begun %v, aborted %v", got.begun, got.aborted)
	}
	if len(got.received) != 1 || got.dirs[0] != got.into {
		t.Fatalf("received %v", got.received)
	}
	want := message(raftpb.MsgSnap, 1, 2, 0)
	want.Term, want.Snapshot = proto.Uint64(4), &raftpb.Snapshot{Metadata: s.Metadata}
	if !proto.Equal(got.received[0], want) {
		t.Errorf("received %v", got.received[0])
	}
	sameFiles(t, s, got.into)
	a.snapshots.mu.Lock()
	defer a.snapshots.mu.Unlock()
	if a.snapshots.released != 1 {
		t.Errorf("released %d times", a.snapshots.released)
	}
	if st := a.Stats()[0]; st.SnapshotsSent != 1 || st.SentBytes < flushEvery || st.SnapshotsSending != 0 {
		t.Errorf("stats %+v", st)
	}
	if st := b.Stats()[0]; st.SnapshotsReceived != 1 || st.ReceivedBytes < flushEvery || st.SnapshotsReceiving != 0 {
		t.Errorf("stats of the receiver %+v", st)
	}
	if to, from := <-sent, <-received; to != 2 || from != 1 {
		t.Errorf("the time was told of one to %x and one from %x", to, from)
	}
}

func sameFiles(t *testing.T, s *Snapshot, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, s.Files) {
		t.Errorf("files %q", names)
	}
	for _, name := range s.Files {
		want, err := os.ReadFile(filepath.Join(s.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != string(want) {
			t.Errorf("%s has %d bytes, wanted %d, or they differ: %v", name, len(got), len(want), err)
		}
	}
}

// A byte that changes on its way, anywhere, fails the snapshot, and what was
// begun is aborted.
func TestSnapshotDamaged(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	through(p, b, a)
	poll(t, "streams", func() bool { return a.remote(2) != nil && a.remote(2).up() })
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 1000, "two": 0, "three": 2000})
	// The request's header has at most 500 bytes; the head and files follow, in
	// all 3000 and some.
	const header, total = 500, 3300
	begun := 0
	for at := header; at < total; at += 280 {
		a.forget()
		b.snapshots.into = t.TempDir()
		p.flip.Store(int64(at))
		a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
		a.await("the snapshot to fail", func() bool { return slices.Equal(a.sent[2], []bool{false}) })
		p.flip.Store(0)
		b.snapshots.mu.Lock()
		if n := len(b.snapshots.begun); n == begun {
			t.Logf("byte %d: refused before it was begun", at)
		} else if begun = n; len(b.snapshots.aborted) != n {
			t.Errorf("byte %d: begun %d times, aborted %d", at, n, len(b.snapshots.aborted))
		}
		if len(b.snapshots.received) > 0 {
			t.Fatalf("byte %d: received", at)
		}
		b.snapshots.mu.Unlock()
	}
	if begun < 5 {
		t.Errorf("only %d damaged in the files", begun)
	}
	// The same without damage, so that the failures are known to come from it.
	a.forget()
	b.snapshots.into = t.TempDir()
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("the snapshot", func() bool { return slices.Equal(a.sent[2], []bool{true}) })
}

// up tells whether both streams to the member are.
func (r *remote) up() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out[entries] != nil && r.out[control] != nil
}

// The connection breaks half-way.
func TestSnapshotCut(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	var once sync.Once
	p.onBytes = func(total int64) {
		if total > 2<<20 {
			once.Do(p.freeze)
		}
	}
	through(p, b, a)
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 4 << 20})
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	poll(t, "the receiver to begin", func() bool { // what it has not read yet may be lost with the connection
		b.snapshots.mu.Lock()
		defer b.snapshots.mu.Unlock()
		return len(b.snapshots.begun) == 1
	})
	p.cut()
	p.thaw()
	a.await("the snapshot to fail", func() bool { return slices.Equal(a.sent[2], []bool{false}) })
	poll(t, "the receiver to abort", func() bool { return slices.Equal(b.snapshots.abortedDirs(), []string{b.snapshots.into}) })
	if a.snapshots.released != 1 {
		t.Error("the snapshot was not released")
	}
}

// Nothing moves: both sides give up.
func TestSnapshotStalled(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1, quick), start(t, 2, quick)
	p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
	var once sync.Once
	p.onBytes = func(total int64) {
		if total > 2<<20 {
			once.Do(p.freeze)
		}
	}
	through(p, b, a)
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 32 << 20})
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("the snapshot to fail", func() bool { return slices.Equal(a.sent[2], []bool{false}) })
	poll(t, "the receiver to abort", func() bool { return len(b.snapshots.abortedDirs()) == 1 })
}

// The sender, or the receiver, closes meanwhile: neither waits for the other.
func TestSnapshotClosed(t *testing.T) {
	for _, c := range []struct {
		name string
		stop func(a, b *node)
	}{
		{"sender", func(a, _ *node) { a.Close() }},
		{"receiver", func(_, b *node) { b.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := start(t, 1), start(t, 2)
			p := newProxy(t, strings.TrimPrefix(b.url, "http://"))
			frozen := make(chan struct{})
			var once sync.Once
			p.onBytes = func(total int64) {
				if total > 2<<20 {
					once.Do(func() {
						p.freeze()
						close(frozen)
					})
				}
			}
			through(p, b, a)
			a.snapshots.give = makeSnapshot(t, map[string]int{"one": 32 << 20})
			a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
			<-frozen
			poll(t, "the receiver to begin", func() bool {
				b.snapshots.mu.Lock()
				defer b.snapshots.mu.Unlock()
				return len(b.snapshots.begun) == 1
			})
			if sending, receiving := a.Stats()[0].SnapshotsSending, b.Stats()[0].SnapshotsReceiving; sending != 1 || receiving != 1 {
				t.Errorf("%d snapshots are being sent, and %d received", sending, receiving)
			}
			c.stop(a, b)
			p.thaw()
			p.cut()
			a.await("the snapshot to fail", func() bool { return slices.Equal(a.sent[2], []bool{false}) })
			poll(t, "the receiver to abort", func() bool { return len(b.snapshots.abortedDirs()) == 1 })
		})
	}
}

// The receiver may take its time with what it got, and what it says in the end
// counts.
func TestSnapshotVerdict(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1, quick), start(t, 2, quick)
	meet(t, a, b)
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 10})
	for _, fail := range []error{nil, errors.New("no room for the machine")} {
		a.forget()
		b.snapshots.into = t.TempDir()
		b.snapshots.during = func(ctx context.Context) error {
			if fail != nil {
				return fail
			}
			timer := time.NewTimer(3 * a.stall() / 2) // longer than any timeout
			defer timer.Stop()
			select {
			case <-timer.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
		a.await("the verdict", func() bool { return slices.Equal(a.sent[2], []bool{fail == nil}) })
		if len(b.snapshots.abortedDirs()) != 0 {
			t.Error("what was received is aborted")
		}
	}
}

// Each MsgSnap is answered once, whatever becomes of it.
func TestSnapshotsNotSent(t *testing.T) {
	a := start(t, 1)
	a.Send([]*raftpb.Message{snapshotMessage(1, 9), snapshotMessage(1, 9)})
	a.await("two failures for an unknown member", func() bool { return slices.Equal(a.sent[9], []bool{false, false}) })

	b, c, d := start(t, 2), start(t, 3), start(t, 4)
	introduce(a, b, c, d)
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("a failure to take", func() bool { return slices.Equal(a.sent[2], []bool{false}) })
	a.forget()

	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo)
	for _, n := range []*node{b, c} {
		n.snapshots.during = func(context.Context) error { <-release; return nil }
	}
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 10})
	a.Send([]*raftpb.Message{snapshotMessage(1, 2), snapshotMessage(1, 3), snapshotMessage(1, 4)})
	a.await("one too many", func() bool { return slices.Equal(a.sent[4], []bool{false}) })

	// A member receives one at a time.
	begun := func() int {
		b.snapshots.mu.Lock()
		defer b.snapshots.mu.Unlock()
		return len(b.snapshots.begun)
	}
	poll(t, "the first to be received", func() bool { return begun() > 0 })
	d.snapshots.give = a.snapshots.give
	d.Send([]*raftpb.Message{snapshotMessage(4, 2)})
	d.await("a second sender to be refused", func() bool { return slices.Equal(d.sent[2], []bool{false}) })
	if begun() != 1 {
		t.Errorf("%d were begun", begun())
	}
	letGo()
	a.await("the others", func() bool { return slices.Equal(a.sent[2], []bool{true}) && slices.Equal(a.sent[3], []bool{true}) })

	gone := makeSnapshot(t, nil)
	gone.Files = []string{"missing"}
	a.snapshots.give = gone
	a.forget()
	a.Send([]*raftpb.Message{snapshotMessage(1, 4)})
	a.await("a failure for a missing file", func() bool { return slices.Equal(a.sent[4], []bool{false}) })
	if len(d.snapshots.begun) != 0 {
		t.Error("it was begun")
	}
}

func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const rate, piece = 10 << 20, 256 << 10
		p := pacer{rate: rate}
		began := time.Now()
		pass := func(bytes int) {
			for range bytes / piece {
				if err := p.wait(t.Context(), piece); err != nil {
					t.Fatal(err)
				}
			}
		}
		check := func(what string, bytes int, since time.Time) {
			t.Helper()
			want := time.Duration(float64(bytes) / rate * float64(time.Second))
			got := time.Since(since)
			if slack := pacerCredit + want/50 + 30*time.Millisecond; got < want-slack || got > want+slack {
				t.Errorf("%s: %d bytes took %s, should take %s", what, bytes, got, want)
			}
		}
		pass(50 << 20)
		check("at once", 50<<20, began)
		time.Sleep(time.Minute) // a network that stood still
		again := time.Now()
		pass(10 << 20)
		check("after a pause", 10<<20, again)

		strained := true
		p = pacer{rate: rate, strained: func() bool { return strained }}
		pass(rate) // it soon keeps to an eighth
		began = time.Now()
		pass(rate / 2)
		check("strained", rate/2*minShare, began)
		strained = false
		pass(4 * rate) // it soon has all again
		began = time.Now()
		pass(rate)
		check("after a strain", rate, began)

		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := p.wait(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		free := pacer{rate: -1}
		began = time.Now()
		for range 1000 {
			if err := free.wait(t.Context(), 1<<30); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("without a rate it took %s", d)
		}
	})
}

// The rate of the configuration is that of what is sent.
func TestSnapshotRate(t *testing.T) {
	t.Parallel()
	a, b := start(t, 1, func(c *Config, _ *nodeSetup) { c.SnapshotRate = 8 << 20 }), start(t, 2)
	meet(t, a, b)
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 4 << 20})
	began := time.Now()
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("the snapshot", func() bool { return slices.Equal(a.sent[2], []bool{true}) })
	if d := time.Since(began); d < 400*time.Millisecond {
		t.Errorf("4 MiB at 8 MiB/s took %s", d)
	}
}

func TestSnapshotHead(t *testing.T) {
	good := func() *snapshotHead {
		m := snapshotMessage(1, 2)
		m.Snapshot.Data = nil
		return &snapshotHead{m, []File{{"a", 0}, {"b.sst", 1 << 40}}}
	}
	frame, err := good().frame()
	if err != nil {
		t.Fatal(err)
	}
	_, payload, err := newFrameReader(strings.NewReader(string(frame)), maxSnapshotHead).next()
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodeSnapshotHead(payload)
	if err != nil || !proto.Equal(h.message, good().message) || !slices.Equal(h.files, good().files) {
		t.Errorf("decoded %v, %v", h, err)
	}
	for i := range payload {
		if _, err := decodeSnapshotHead(payload[:i]); err == nil {
			t.Errorf("cut to %d bytes it is taken", i)
		}
	}
	for name, change := range map[string]func(h *snapshotHead){
		"path":        func(h *snapshotHead) { h.files[0].Name = "../a" },
		"parent":      func(h *snapshotHead) { h.files[0].Name = ".." },
		"directory":   func(h *snapshotHead) { h.files[0].Name = "." },
		"backslash":   func(h *snapshotHead) { h.files[0].Name = `a\b` },
		"no name":     func(h *snapshotHead) { h.files[0].Name = "" },
		"zero byte":   func(h *snapshotHead) { h.files[0].Name = "a\x00" },
		"long name":   func(h *snapshotHead) { h.files[0].Name = strings.Repeat("a", 256) },
		"twice":       func(h *snapshotHead) { h.files[0].Name = "b.sst" },
		"too long":    func(h *snapshotHead) { h.files[0].Size = 1 << 62; h.files[1].Size = 1 << 62 },
		"negative":    func(h *snapshotHead) { h.files[0].Size = -1 },
		"type":        func(h *snapshotHead) { h.message.Type = raftpb.MsgApp.Enum() },
		"no metadata": func(h *snapshotHead) { h.message.Snapshot = nil },
	} {
		h := good()
		change(h)
		frame, err := h.frame()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeSnapshotHead(frame[frameHeaderLen:]); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// A sender that is strained sends an eighth of its rate; a receiver gives up when nothing comes
// for six timeouts, 30 s. A rate of 64 KiB/s is still no stall; here are timeouts of 100 ms
// and a rate in the same proportion.
func TestSlowSnapshotIsNotTakenForAStalledOne(t *testing.T) {
	const timeout = 100 * time.Millisecond
	short := func(c *Config, _ *nodeSetup) {
		c.ReadTimeout, c.WriteTimeout = timeout, timeout
		c.SnapshotRate = int64(64<<10) * int64(DefaultReadTimeout/timeout)
		c.Strained = func() bool { return true }
	}
	a, b := start(t, 1, short), start(t, 2, short)
	meet(t, a, b)
	a.snapshots.give = makeSnapshot(t, map[string]int{"one": 3 << 20})
	began := time.Now()
	a.Send([]*raftpb.Message{snapshotMessage(1, 2)})
	a.await("the snapshot's end", func() bool { return len(a.sent[2]) == 1 })
	if !slices.Equal(a.sent[2], []bool{true}) {
		t.Errorf("the snapshot failed after %v; nothing was wrong but that it is slow", time.Since(began))
	}
}

// Send is called by raft's goroutine and must not wait. Update ends connections
// under the lock that Send takes; to take leave of one of TLS would be to write, for up to five
// seconds if the other end reads nothing.
func TestSendDoesNotWaitForAClosingConnection(t *testing.T) {
	server, dial := security(t)
	secure := func(c *Config, s *nodeSetup) { c.DialTLS, s.tls = dial, server }
	a, b := start(t, 1, secure), start(t, 2, secure)
	c := start(t, 3, secure)
	meet(t, a, b)
	release := make(chan struct{})
	defer close(release)
	b.mu.Lock()
	entered := make(chan struct{}, 1)
	b.block = func(*raftpb.Message) { entered <- struct{}{}; <-release } // b hangs: it reads no more of the stream
	b.mu.Unlock()
	a.Send([]*raftpb.Message{bulk(1, 2, 1, 1)})
	<-entered
	r := a.remote(2)
	r.mu.Lock()
	raw := r.out[entries].Conn.(*tls.Conn).NetConn()
	r.mu.Unlock()
	// What is on its way fills the buffers of both ends, to the last byte.
	for {
		_ = raw.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := raw.Write(make([]byte, 256<<10)); err != nil && n == 0 {
			break
		}
	}
	_ = raw.SetWriteDeadline(time.Time{})
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		a.Update([]Member{{2, []string{c.url}}}, nil) // b is said to be elsewhere
	}()
	time.Sleep(50 * time.Millisecond)
	began := time.Now()
	a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 2)})
	if took := time.Since(began); took > time.Second {
		t.Errorf("Send took %v", took)
	}
	<-moved
}
