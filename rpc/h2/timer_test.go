package h2

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		c := f.pipe(t)
		began := time.Now()
		c.open(1, "/hold", true, "timeout: 5s")
		c.open(3, "/hold", false, "timeout: 3s")
		c.call(5, "/later", "", "timeout: 7s")
		c.open(7, "/whole", true, "timeout: 1ns")
		c.expect("7: status=200 kind=test", "7: end=0 end")
		for _, tt := range []struct {
			after  time.Duration
			answer []string
		}{
			{3 * time.Second, []string{"3: status=200 kind=test end=expired end", "3: reset NO_ERROR"}},
			{5 * time.Second, []string{"1: status=200 kind=test end=expired end"}},
			{7 * time.Second, []string{"5: status=200 kind=test end=expired end"}},
		} {
			c.expect(tt.answer...)
			if took := time.Since(began); took != tt.after {
				t.Errorf("%q came after %v, want %v", tt.answer, took, tt.after)
			}
		}
		for range 2 {
			if err := <-f.handler.ended; !errors.Is(err, ErrExpired) {
				t.Errorf("the handler was told %v", err)
			}
		}
		f.handler.answerLater(<-f.handler.later) // too late
		c.call(9, "/whole", "abc")
		c.expectAnswer(9, "abc")
	})
}

// Deadlines that come one after the other do not have a connection with many streams do nothing but look for them.
func TestDeadlinesAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		c := f.pipe(t)
		const others = 100
		for i := range uint32(others) {
			c.open(2*i+1, "/hold", true)
		}
		began := time.Now()
		for i := range uint32(3) {
			id := 2*(others+i) + 1
			c.open(id, "/whole", false, "timeout: 1ns")
			c.expect(fmt.Sprintf("%d: status=200 kind=test end=expired end", id), fmt.Sprintf("%d: reset NO_ERROR", id))
			at := time.Since(began)
			if soonest := time.Duration(i) * others * lookingCost; at < soonest || at > soonest+time.Duration(i+1)*(lookingCost+time.Nanosecond) {
				t.Errorf("deadline %d passed after %v, want %v", i, at, soonest)
			}
		}
		// The same where the second is known when the first passes.
		const first, second = 2*others + 101, 2*others + 103
		began = time.Now()
		c.open(first, "/hold", true, "timeout: 1s")
		c.open(second, "/hold", true, "timeout: 1000000001ns")
		c.expect(fmt.Sprintf("%d: status=200 kind=test end=expired end", first))
		if at := time.Since(began); at != time.Second {
			t.Errorf("the first passed after %v", at)
		}
		c.expect(fmt.Sprintf("%d: status=200 kind=test end=expired end", second))
		if at := time.Since(began); at < time.Second+others*lookingCost || at > time.Second+2*others*lookingCost {
			t.Errorf("the second passed after %v", at)
		}
	})
}

// A stream that has sent a part is ended by the trailer alone; what it has unsent is dropped.
func TestDeadlineOfAnAnswerThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newFixture(t, nil).pipe(t)
		c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3}))
		c.call(1, "/whole", "abcdef", "timeout: 5s")
		c.expect("1: status=200 kind=test", `1: "abc"`, "1: end=expired end")
	})
}

func TestKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(cfg *Config) {
			cfg.KeepaliveInterval, cfg.KeepaliveTimeout = 10*time.Second, 3*time.Second
		})
		c := f.pipe(t)
		c.call(1, "/whole", "")
		c.expectAnswer(1, "")
		began := time.Now()
		expectPing := func(after time.Duration) {
			t.Helper()
			frame, err := c.ReadFrame()
			for ; err == nil; frame, err = c.ReadFrame() {
				if p, ok := frame.(*http2.PingFrame); ok && !p.IsAck() {
					break
				}
			}
			if took := time.Since(began); err != nil || took != after {
				t.Fatalf("after %v: %v, %v; want a ping after %v", took, frame, err, after)
			}
		}
		expectPing(10 * time.Second)
		c.must(c.WritePing(true, [8]byte{}))
		expectPing(20 * time.Second)
		time.Sleep(2 * time.Second)
		c.call(3, "/whole", "") // it lives
		c.expectAnswer(3, "")
		expectPing(32 * time.Second)
		c.expect("closed")
		if took := time.Since(began); took != 35*time.Second {
			t.Errorf("disconnected after %v", took)
		}
		if err := <-c.failed; err == nil {
			t.Error("the connection ended in order")
		}
	})
}

// Pings that come too often end the connection, unless answers were sent between.
func TestTooManyPings(t *testing.T) {
	for _, tt := range []struct {
		name    string
		stream  bool
		pause   time.Duration
		between func(*client)
		allowed bool
	}{
		{name: "at once"},
		{name: "with a stream", stream: true, pause: 59 * time.Second},
		{name: "with a stream, slowly", stream: true, pause: time.Minute, allowed: true},
		{name: "without a stream, slowly", pause: time.Minute},
		{name: "without a stream, most slowly", pause: 2 * time.Hour, allowed: true},
		{name: "with answers between", allowed: true, between: func(c *client) {
			c.call(c.id(), "/whole", "abc")
			c.expect(c.any()+"status=200 kind=test", c.any()+`"abc"`, c.any()+"end=0 end")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newFixture(t, func(cfg *Config) { cfg.KeepaliveInterval = 1000 * time.Hour }).pipe(t)
				if tt.stream {
					c.open(c.id(), "/hold", true)
				}
				events := make(chan string, 1)
				for i := range 6 {
					time.Sleep(tt.pause)
					if tt.between != nil {
						tt.between(c)
					}
					if err := c.WritePing(false, [8]byte{byte(i)}); err != nil {
						break
					}
					synctest.Wait()
					if tt.between == nil && i == 0 {
						go func() { events <- c.next() }()
					} else if tt.between != nil {
						if _, err := c.ReadFrame(); err != nil {
							t.Fatal(err)
						}
					}
				}
				synctest.Wait()
				select {
				case e := <-events:
					if tt.allowed || e != "GOAWAY 0 ENHANCE_YOUR_CALM too_many_pings" && e != "GOAWAY 1 ENHANCE_YOUR_CALM too_many_pings" {
						t.Errorf("got %q", e)
					}
				default:
					if !tt.allowed {
						t.Error("all pings were taken")
					}
				}
			})
		})
	}
}

// A peer that does not say what it wants is not waited for.
func TestHandshakeTimeout(t *testing.T) {
	for name, sent := range map[string]string{"nothing": "", "half": Preface[:10], "no SETTINGS": Preface} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, nil)
				nc := f.pipeOnly(t)
				if _, err := nc.Write([]byte(sent)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				f.conns.Wait()
				if took := time.Since(began); took != 10*time.Second {
					t.Errorf("it was waited for %v", took)
				}
			})
		})
	}
}

// Draining refuses new streams after the peer has been told, and ends when the last one has.
func TestDrain(t *testing.T) {
	for _, acknowledges := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, nil)
			c := f.pipe(t)
			c.call(1, "/later", "one")
			one := <-f.handler.later
			began := time.Now()
			f.Drain()
			c.expect("GOAWAY 2147483647 NO_ERROR ")
			frame, err := c.ReadFrame()
			ping, ok := frame.(*http2.PingFrame)
			if err != nil || !ok {
				t.Fatalf("got %v, %v", frame, err)
			}
			c.call(3, "/later", "three") // it was on its way
			three := <-f.handler.later
			if acknowledges {
				c.must(c.WritePing(true, ping.Data))
			}
			c.expect("GOAWAY 3 NO_ERROR ")
			if took := time.Since(began); (took == 0) != acknowledges || took > drainTimeout {
				t.Errorf("told after %v", took)
			}
			c.open(5, "/whole", true)
			c.expect("5: reset REFUSED_STREAM")
			f.handler.answerLater(one)
			c.expectAnswer(1, "one")
			go f.handler.answerLater(three)
			c.expectAnswer(3, "three")
			c.expect("closed")
			f.Wait()
			if err := <-c.failed; err != nil {
				t.Errorf("the connection ended with %v", err)
			}
		})
	}
}

// A connection without streams ends at once.
func TestDrainIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		c := f.pipe(t)
		c.call(1, "/whole", "")
		c.expectAnswer(1, "")
		go f.Drain()
		c.expect("GOAWAY 2147483647 NO_ERROR ", "GOAWAY 1 NO_ERROR ", "closed")
	})
}

// A peer that is told of an error and does not hang up is not waited for.
func TestLinger(t *testing.T) {
	f := newFixture(t, nil)
	c := f.dial(t)
	c.must(c.WriteData(0, true, nil))
	c.expect("GOAWAY 0 PROTOCOL_ERROR DATA for a stream that is not open", "closed")
	began := time.Now()
	<-c.failed // without c.nc.Close
	if took := time.Since(began); took > 10*lingerTimeout {
		t.Errorf("it was waited for %v", took)
	}
}
