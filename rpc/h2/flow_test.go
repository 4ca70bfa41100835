package h2

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// A peer is sent as much as it allows.
func TestSendWindows(t *testing.T) {
	c := newFixture(t, nil).dial(t)
	body := strings.Repeat("x", 100<<10)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}))
	c.call(1, "/whole", body[:15])
	c.expect("1: status=200 kind=test", `1: "xxxxxxxxxx"`)
	c.must(c.WriteWindowUpdate(1, 2))
	c.expect(`1: "xx"`)
	// A window may become negative, and grow from there.
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5}))
	c.must(c.WriteWindowUpdate(1, 4))
	c.must(c.WriteWindowUpdate(1, 2))
	c.expect(`1: "x"`)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
	c.expect(`1: "xx"`, "1: end=0 end")

	// That of the connection holds for all together: 65,535 bytes, less the 15.
	c.call(3, "/whole", body)
	c.call(5, "/whole", "abc")
	c.expect("3: status=200 kind=test")
	sent, fifth := 0, false
	read := func(until int) {
		for sent < until {
			switch e := c.next(); {
			case e == "5: status=200 kind=test":
				fifth = true
			case strings.HasPrefix(e, "3: "):
				var n int
				if _, err := fmt.Sscanf(e, `3: "%d bytes"`, &n); err != nil {
					t.Fatalf("got %q", e)
				}
				sent += n
			default:
				t.Fatalf("got %q", e)
			}
		}
	}
	read(defaultWindow - 15)
	if sent != defaultWindow-15 {
		t.Fatalf("%d bytes were sent, with a window for %d", sent, defaultWindow-15)
	}
	if !fifth {
		c.expect("5: status=200 kind=test")
	}
	c.must(c.WriteWindowUpdate(0, 10))
	c.expect(`3: "xxxxxxxxxx"`)
	c.must(c.WriteWindowUpdate(0, 2))
	c.expect(`5: "ab"`) // it is the other's turn
	c.must(c.WriteWindowUpdate(0, 1<<20))
	c.expect(`3: "16384 bytes"`, `5: "c"`, "5: end=0 end")
}

// What a peer may not send is refused.
func TestReceiveWindow(t *testing.T) {
	c := newFixture(t, nil).dial(t)
	c.open(1, "/hold", false)
	for range 8 { // 128 KiB are allowed
		c.must(c.WriteData(1, false, make([]byte, maxFrame)))
	}
	c.must(c.WriteData(1, false, []byte("x")))
	c.expect("1: reset FLOW_CONTROL_ERROR")
}

// Bodies of any size pass in both directions, many at a time, with another implementation's client.
func TestLargeBodies(t *testing.T) {
	f := newFixture(t, func(cfg *Config) { cfg.MaxHeldBytes, cfg.MaxUnsentBytes = 64<<20, 64<<20 })
	for _, kind := range []string{"socket", "pipe"} {
		t.Run(kind, func(t *testing.T) {
			connect := f.dialOnly
			if kind == "pipe" {
				connect = f.pipeOnly
			}
			transport := &http.Transport{Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
				return connect(t), nil
			}}
			transport.Protocols.SetUnencryptedHTTP2(true)
			defer transport.CloseIdleConnections()
			var all sync.WaitGroup
			for i := range 16 {
				all.Go(func() {
					path := []string{"/flow", "/whole"}[i%2]
					body := bytes.Repeat([]byte(fmt.Sprintf("%08d", i)), i*8<<10)
					r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://x"+path, bytes.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					resp, err := transport.RoundTrip(r)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					got, err := io.ReadAll(resp.Body)
					if err != nil || !bytes.Equal(got, body) || resp.Trailer.Get("end") != "0" {
						t.Errorf("request %d: %d bytes came back of %d, trailer %v, %v", i, len(got), len(body), resp.Trailer, err)
					}
				})
			}
			all.Wait()
		})
	}
}

func (f *fixture) dialOnly(t *testing.T) net.Conn { return f.headed(t, nil).nc }

func (f *fixture) pipeOnly(t *testing.T) net.Conn {
	nc, server := net.Pipe()
	return f.connect(t, nc, server, ConnOptions{}).nc
}

// What has been read of a body takes no memory, also when there is always a rest.
func TestReadWithARest(t *testing.T) {
	reads, went := make(chan struct{}), make(chan struct{})
	largest := 0
	f := newFixture(t, func(cfg *Config) {
		cfg.Handler = flowHandler(func(s *Stream) {
			defer s.Release(false)
			defer close(went)
			for range reads {
				s.c.mu.Lock()
				for len(s.in)-s.inAt <= maxFrame {
					s.change.Wait()
				}
				largest = max(largest, cap(s.in))
				s.c.mu.Unlock()
				if _, err := io.ReadFull(s, make([]byte, maxFrame)); err != nil {
					t.Error(err)
				}
				went <- struct{}{}
			}
		})
	})
	c := f.dial(t)
	c.open(1, "/", false)
	c.must(c.WriteData(1, false, []byte("rest")))
	for range 200 {
		c.must(c.WriteData(1, false, make([]byte, maxFrame)))
		reads <- struct{}{}
		<-went
	}
	close(reads)
	<-went
	if largest > 8*maxFrame {
		t.Errorf("%d bytes were held", largest)
	}
}

// A handler that sends waits while the peer does not read, and is told when the stream ends.
func TestSendWaits(t *testing.T) {
	for name, end := range map[string]func(*client){
		"by a reset":                 func(c *client) { c.must(c.WriteRSTStream(1, 8)) },
		"by the connection's end":    func(c *client) { c.nc.Close() },
		"by an error of the peer":    func(c *client) { c.must(c.WriteData(0, true, nil)) },
		"by an error on the stream":  func(c *client) { c.must(c.WriteWindowUpdate(1, 0)) },
		"because the peer has begun": func(c *client) { c.must(c.WriteWindowUpdate(0, 1<<20)); c.must(c.WriteWindowUpdate(1, 1<<20)) },
	} {
		t.Run(name, func(t *testing.T) {
			sending := make(chan int, 100)
			done := make(chan error, 1)
			f := newFixture(t, func(cfg *Config) {
				cfg.Handler = flowHandler(func(s *Stream) {
					defer s.Release(false)
					var err error
					for i := 0; i < 20 && err == nil; i++ {
						sending <- i
						err = s.Send(testHead, Bytes(make([]byte, 16<<10)))
					}
					done <- err
					_ = s.Finish(nil, testTrailer)
				})
			})
			c := f.dial(t)
			c.open(1, "/", true)
			c.expect("1: status=200 kind=test")
			for i := 0; i < 7; { // 64 KiB are allowed and as much is kept: the eighth or ninth waits
				i = <-sending
			}
			select {
			case err := <-done:
				t.Fatalf("everything was sent: %v", err)
			default:
			}
			end(c)
			if err := <-done; (err == nil) != (name == "because the peer has begun") {
				t.Errorf("sending ended with %v", err)
			}
		})
	}
}

// flowHandler is a Handler that reads its requests.
type flowHandler func(*Stream)

func (h flowHandler) Request(s *Stream) Body {
	s.Hold()
	go h(s)
	return Flow
}

func (h flowHandler) Whole(*Stream, []byte, bool) { panic("nothing is collected") }
