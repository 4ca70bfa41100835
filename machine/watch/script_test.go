package watch

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coteriedb/coterie/machine/mvcc"
)

// TestScripts runs the transcripts in testdata; -rewrite renews their output.
// Time is fake, and every command waits until all goroutines have come to
// rest, so a transcript has only one outcome.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t, src: newFakeSource(), streams: map[string]*Stream{}}
			datadriven.RunTest(t, path, s.run)
			s.hub.Close()
		})
	})
}

type script struct {
	t       *testing.T
	src     *fakeSource
	hub     *Hub
	streams map[string]*Stream
	// written are the revisions that are readable and not yet published.
	written []mvcc.RevisionEvents
}

// run executes one command. The commands are:
//
//	hub [ring=<events>] [queue=<bytes>] [fragment=<bytes>] [interval=<duration>]
//	write [publish=no]         each line of input is one revision: k=v puts, k deletes
//	refuse stream=<name>       a creation that the caller does not permit
//	publish                    what was written with publish=no
//	compact rev=<r>
//	create stream=<name> [key=] [end=] [rev=] [id=] [prev] [frag] [notify] [noput] [nodelete]
//	cancel stream=<name> id=<id>
//	progress stream=<name>
//	read stream=<name>         everything there is
//	close stream=<name>
//	advance by=<duration>
//	stats
//	fail [error=<text>]        reading history
func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	if d.Cmd == "hub" {
		s.hub = NewHub(s.src, s.options(d))
		return "ok\n"
	}
	var out string
	switch d.Cmd {
	case "write":
		out = s.write(d)
	case "publish":
		s.publish()
	case "compact":
		s.src.compactTo(argInt(t, d, "rev"))
	case "create":
		out = result(s.stream(d).Create(t.Context(), createRequest(t, d)))
	case "cancel":
		out = result(s.stream(d).Cancel(t.Context(), argInt(t, d, "id")))
	case "refuse":
		out = result(s.stream(d).Refuse(t.Context(), "permission denied"))
	case "progress":
		s.stream(d).RequestProgress()
	case "read":
		out = s.read(s.stream(d))
	case "close":
		s.stream(d).Close()
	case "advance":
		var by string
		d.ScanArgs(t, "by", &by)
		dur, err := time.ParseDuration(by)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(dur)
	case "stats":
		synctest.Wait()
		out = fmt.Sprintf("%+v\n", s.hub.Stats())
	case "fail":
		var text string
		d.MaybeScanArgs(t, "error", &text)
		s.src.setFail(nil)
		if text != "" {
			s.src.setFail(errors.New(text))
		}
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	synctest.Wait()
	if out == "" {
		return "ok\n"
	}
	return out
}

func result(err error) string {
	if err != nil {
		return err.Error() + "\n"
	}
	return ""
}

func (s *script) options(d *datadriven.TestData) Options {
	o := Options{Jitter: func(int64) int64 { return 0 }}
	d.MaybeScanArgs(s.t, "ring", &o.RingEvents)
	d.MaybeScanArgs(s.t, "queue", &o.StreamBytes)
	d.MaybeScanArgs(s.t, "fragment", &o.FragmentBytes)
	var interval string
	if d.MaybeScanArgs(s.t, "interval", &interval) {
		var err error
		if o.ProgressInterval, err = time.ParseDuration(interval); err != nil {
			s.t.Fatal(err)
		}
	}
	return o
}

func argInt(t *testing.T, d *datadriven.TestData, name string) (n int64) {
	d.MaybeScanArgs(t, name, &n)
	return n
}

func createRequest(t *testing.T, d *datadriven.TestData) *pb.WatchCreateRequest {
	bytes := func(name string) []byte {
		var quoted string
		if !d.MaybeScanArgs(t, name, &quoted) {
			return nil
		}
		if s, err := strconv.Unquote(`"` + quoted + `"`); err == nil {
			quoted = s
		}
		return []byte(quoted)
	}
	r := &pb.WatchCreateRequest{
		Key:            bytes("key"),
		RangeEnd:       bytes("end"),
		StartRevision:  argInt(t, d, "rev"),
		WatchId:        argInt(t, d, "id"),
		PrevKv:         d.HasArg("prev"),
		Fragment:       d.HasArg("frag"),
		ProgressNotify: d.HasArg("notify"),
	}
	if d.HasArg("noput") {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NOPUT)
	}
	if d.HasArg("nodelete") {
		r.Filters = append(r.Filters, pb.WatchCreateRequest_NODELETE)
	}
	return r
}

// stream returns the stream named in the command, new the first time.
func (s *script) stream(d *datadriven.TestData) *Stream {
	var name string
	d.ScanArgs(s.t, "stream", &name)
	if s.streams[name] == nil {
		s.streams[name] = s.hub.NewStream()
	}
	return s.streams[name]
}

func (s *script) write(d *datadriven.TestData) string {
	first := s.src.Revision() + 1
	for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
		s.written = append(s.written, s.src.write(strings.Fields(line)...))
	}
	if !d.HasArg("publish") {
		s.publish()
	}
	return fmt.Sprintf("revisions %d to %d\n", first, s.src.Revision())
}

func (s *script) publish() {
	s.hub.Publish(s.written)
	s.written = nil
}

// read returns what Next has to say until it has to wait.
func (s *script) read(stream *Stream) string {
	ctx, cancel := context.WithCancel(s.t.Context())
	var lines []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			rs, err := stream.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				lines = append(lines, err.Error())
				return
			}
			for _, r := range decode(s.t, rs) {
				lines = append(lines, showResponse(r))
			}
		}
	}()
	synctest.Wait()
	cancel()
	<-done
	if len(lines) == 0 {
		return "nothing\n"
	}
	return strings.Join(lines, "\n") + "\n"
}

func showResponse(r *pb.WatchResponse) string {
	parts := []string{fmt.Sprintf("id=%d rev=%d", r.WatchId, r.Header.Revision)}
	for _, f := range []struct {
		set  bool
		name string
	}{{r.Created, "created"}, {r.Canceled, "canceled"}, {r.Fragment, "fragment"}} {
		if f.set {
			parts = append(parts, f.name)
		}
	}
	if r.CompactRevision != 0 {
		parts = append(parts, fmt.Sprintf("compacted=%d", r.CompactRevision))
	}
	if r.CancelReason != "" {
		parts = append(parts, fmt.Sprintf("reason=%q", r.CancelReason))
	}
	if len(r.Events) > 0 {
		var evs []string
		for _, ev := range r.Events {
			evs = append(evs, showEvent(ev))
		}
		parts = append(parts, "["+strings.Join(evs, ", ")+"]")
	}
	return strings.Join(parts, " ")
}
