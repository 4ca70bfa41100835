package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func testData() Data {
	return Data{Prefix: "k/", Keys: 250, KeySize: 8, ValueSize: 32, Seed: 7}
}

// requests is a plan of n requests by 8 clients.
func requests(n int64) Plan { return Plan{Clients: 8, Duration: time.Minute, Total: n} }

func mustLoad(t *testing.T, load Load, err error) Load {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return load
}

func mustRun(t *testing.T, pool *Pool, load Load, plan Plan) *Report {
	t.Helper()
	rep, err := Run(t.Context(), pool, load, plan)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestPut(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 3, light)
		data := testData()
		data.Sequential = true
		load, err := NewPut(data)
		rep := mustRun(t, pool, mustLoad(t, load, err), requests(500))
		if rep.Succeeded != 500 || rep.Failed != 0 || s.count("put") != 500 || rep.Conns != 3 {
			t.Errorf("%+v after %d puts", rep, s.count("put"))
		}
		if len(s.keys) != data.Keys {
			t.Errorf("500 sequential puts wrote %d of %d keys", len(s.keys), data.Keys)
		}
		if kv := s.keys["k/000249"]; kv == nil || len(kv.Value) != 32 {
			t.Errorf("the last key holds %v", kv)
		}
	})
}

func TestRange(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		for _, o := range []RangeOptions{
			{},
			{Serializable: true},
			{Span: 20},
			{Span: 20, Limit: 3},
			{Span: 250, CountOnly: true},
		} {
			t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
				s := &fakeServer{}
				pool := s.serve(t, 2, light)
				load, err := NewRange(KV{Data: testData()}, o)
				// The load itself checks the number of keys in each answer.
				rep := mustRun(t, pool, mustLoad(t, load, err), requests(100))
				if rep.Succeeded != 100 || rep.Failed != 0 {
					t.Errorf("%+v", rep)
				}
				if s.count("txn") != 3 || s.count("txn put") != 250 {
					t.Errorf("filled by %d transactions with %d puts", s.count("txn"), s.count("txn put"))
				}
			})
		}
	})
}

func TestMissingKeysAreWrongAnswers(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		empty := KV{Data: testData(), NoFill: true}
		ranges, err := NewRange(empty, RangeOptions{})
		ranges = mustLoad(t, ranges, err)
		txns, err := NewTxn(empty, 1)
		txns = mustLoad(t, txns, err)
		for _, load := range []Load{ranges, txns} {
			rep := mustRun(t, s.serve(t, 1, light), load, requests(10))
			if rep.Succeeded != 0 || len(rep.Errors) != 1 || rep.Errors[0].Code != "WrongAnswer" || rep.Errors[0].Count != 10 {
				t.Errorf("%s: %+v", load.Name(), rep)
			}
			if err := rep.Err(); !errors.Is(err, ErrNothingDone) || !strings.Contains(err.Error(), "filled") {
				t.Errorf("%s: %v", load.Name(), err)
			}
		}
	})
}

func TestTxn(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 2, light)
		load, err := NewTxn(KV{Data: testData()}, 5)
		rep := mustRun(t, pool, mustLoad(t, load, err), requests(100))
		if rep.Succeeded != 100 || s.count("txn put") != 250+500 || len(s.keys) != 250 {
			t.Errorf("%+v with %d puts of %d keys", rep, s.count("txn put"), len(s.keys))
		}
	})
}

func TestMixed(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 2, light)
		load, err := NewMixed(KV{Data: testData()}, RangeOptions{}, 0.75)
		plan := requests(1000)
		plan.Clients = 1 // the split depends on the seed alone
		rep := mustRun(t, pool, mustLoad(t, load, err), plan)
		reads, puts := rep.Operations[mixedRange], rep.Operations[mixedPut]
		if reads.Kind != "range" || puts.Kind != "put" || reads.Succeeded+puts.Succeeded != 1000 || rep.Succeeded != 1000 {
			t.Fatalf("%+v", rep)
		}
		if reads.Succeeded < 700 || reads.Succeeded > 800 {
			t.Errorf("%d reads of 1000", reads.Succeeded)
		}
	})
}

func TestWatchFanout(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 3, light)
		load, err := NewWatchFanout(testData(), FanoutOptions{Watchers: 10, Streams: 4})
		plan := requests(50)
		plan.WarmUp = 20 * time.Millisecond
		rep := mustRun(t, pool, mustLoad(t, load, err), plan)
		e := rep.Events
		if e.Watchers != 10 || e.Expected != 500 || e.Delivered != 500 || e.PerSecond <= 0 || len(e.Errors) != 0 {
			t.Errorf("%+v", e)
		}
		if e.Latency.P50US <= 0 || e.Latency.MaxUS > rep.Seconds*1e6+1e6 {
			t.Errorf("latency %+v in %v s", e.Latency, rep.Seconds)
		}
		if s.count("watch") != 10 {
			t.Errorf("%d watchers were created", s.count("watch"))
		}
	})
}

func TestAwaitedWatchFanout(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 3, light)
		data := testData()
		data.Keys = 1 // all watch it alone
		load, err := NewWatchFanout(data, FanoutOptions{Watchers: 7, Await: true})
		rep := mustRun(t, pool, mustLoad(t, load, err), requests(50))
		if rep.Succeeded != 50 || rep.Events.Delivered != 350 || rep.Events.Expected != 350 {
			t.Errorf("%+v %+v", rep, rep.Events)
		}
		if rep.Latency.MaxUS < rep.Events.Latency.MaxUS*0.99 {
			t.Errorf("a put took %.0f µs at most, and its events %.0f µs", rep.Latency.MaxUS, rep.Events.Latency.MaxUS)
		}
	})
}

// A put whose events do not all come is abandoned, not waited for.
func TestAwaitedEventsThatDoNotCome(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{deaf: 1}
		pool := s.serve(t, 3, light)
		load, err := NewWatchFanout(testData(), FanoutOptions{Watchers: 7, Await: true})
		plan := requests(50)
		plan.Duration, plan.Grace = 50*time.Millisecond, 50*time.Millisecond
		rep := mustRun(t, pool, mustLoad(t, load, err), plan)
		if rep.Succeeded != 0 || rep.Abandoned != 8 {
			t.Errorf("%+v", rep)
		}
	})
}

func TestIdleWatchers(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 3, light)
		put, err1 := NewPut(testData())
		load, err2 := NewIdleWatchers(put, 100)
		rep := mustRun(t, pool, mustLoad(t, load, errors.Join(err1, err2)), requests(50))
		if rep.Succeeded != 50 || s.count("watch") != 100 {
			t.Errorf("%+v with %d watchers", rep, s.count("watch"))
		}
	})
}

func TestLightClientAtAFixedRate(t *testing.T) {
	s := &fakeServer{}
	pool := s.serve(t, 2, true)
	load, err := NewPut(testData())
	plan := requests(200)
	plan.Rate = 5000
	rep := mustRun(t, pool, mustLoad(t, load, err), plan)
	if rep.Succeeded != 200 || rep.Unsent != 0 || rep.Seconds < 0.0398 || rep.Service == nil {
		t.Errorf("%+v", rep)
	}
}

func TestLightClientCannotPutOnEveryLoad(t *testing.T) {
	s := &fakeServer{}
	pool := s.serve(t, 1, true)
	load, err := NewWatchLatency(testData(), 8)
	if _, err := Run(t.Context(), pool, mustLoad(t, load, err), requests(10)); err == nil || !strings.Contains(err.Error(), "watch-latency") {
		t.Error(err)
	}
	_, err = Dial(t.Context(), Target{Endpoints: []string{"unix:///nowhere"}, Conns: 1, Light: true, DialTimeout: 50 * time.Millisecond})
	if err == nil {
		t.Error("dialled a socket that is not there")
	}
}

func TestWatchLatency(t *testing.T) {
	s := &fakeServer{}
	pool := s.serve(t, 3, false)
	load, err := NewWatchLatency(testData(), 8)
	rep := mustRun(t, pool, mustLoad(t, load, err), requests(100))
	if rep.Succeeded != 100 || rep.Failed != 0 || s.count("watch") != 8 {
		t.Errorf("%+v with %d watchers", rep, s.count("watch"))
	}
}

func TestLeaseKeepAlive(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{}
		pool := s.serve(t, 3, light)
		load, err := NewLeaseKeepAlive(8, LeaseOptions{PerClient: 3, TTL: time.Minute})
		rep := mustRun(t, pool, mustLoad(t, load, err), requests(100))
		if rep.Succeeded != 100 || s.count("grant") != 24 || s.count("keep-alive") != 100 {
			t.Errorf("%+v after %d grants", rep, s.count("grant"))
		}
		if len(s.leases) != 0 || rep.CleanUpError != "" {
			t.Errorf("%d leases are left: %s", len(s.leases), rep.CleanUpError)
		}
	})
}

func TestErrorsAreCountedByCode(t *testing.T) {
	withBothClients(t, func(t *testing.T, light bool) {
		s := &fakeServer{refuse: status.Error(codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded")}
		pool := s.serve(t, 1, light)
		load, err := NewPut(testData())
		rep := mustRun(t, pool, mustLoad(t, load, err), requests(16))
		want := ErrorCount{Code: "ResourceExhausted", Count: 16, Example: s.refuse.Error()}
		if len(rep.Errors) != 1 || rep.Errors[0] != want || rep.Failed != 16 || rep.Succeeded != 0 {
			t.Errorf("%+v", rep)
		}
		if err := rep.Err(); !errors.Is(err, ErrNothingDone) {
			t.Errorf("a run without a success says %v", err)
		}
		if n := s.count("put"); n != 16 {
			t.Errorf("the client sent %d requests: failures must not be retried", n)
		}
	})
}

func TestDialFails(t *testing.T) {
	_, err := Dial(t.Context(), Target{Endpoints: []string{"127.0.0.1:1"}, Conns: 2, DialTimeout: 200 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "no answer from 127.0.0.1:1") {
		t.Errorf("dialling a closed port says %v", err)
	}
}

func TestBadParameters(t *testing.T) {
	kv := func(change func(*Data)) KV {
		d := testData()
		change(&d)
		return KV{Data: d}
	}
	same := func(*Data) {}
	cases := map[string]func() (Load, error){
		"a key space of 0":      func() (Load, error) { return NewPut(kv(func(d *Data) { d.Keys = 0 }).Data) },
		"cannot hold":           func() (Load, error) { return NewPut(kv(func(d *Data) { d.KeySize = 4 }).Data) },
		"values of -1 bytes":    func() (Load, error) { return NewPut(kv(func(d *Data) { d.ValueSize = -1 }).Data) },
		"a range of 251 keys":   func() (Load, error) { return NewRange(kv(same), RangeOptions{Span: 251}) },
		"a limit of -1":         func() (Load, error) { return NewRange(kv(same), RangeOptions{Limit: -1}) },
		"128 puts":              func() (Load, error) { return NewTxn(kv(same), 128) },
		"a share of reads of 2": func() (Load, error) { return NewMixed(kv(same), RangeOptions{}, 2) },
		"-1 watchers": func() (Load, error) {
			load, _ := NewPut(testData())
			return NewIdleWatchers(load, -1)
		},
		"0 watchers":      func() (Load, error) { return NewWatchFanout(testData(), FanoutOptions{}) },
		"5 watch streams": func() (Load, error) { return NewWatchFanout(testData(), FanoutOptions{Watchers: 4, Streams: 5}) },
		"0 leases":        func() (Load, error) { return NewLeaseKeepAlive(1, LeaseOptions{TTL: time.Minute}) },
		"a time to live of 1ms": func() (Load, error) {
			return NewLeaseKeepAlive(1, LeaseOptions{PerClient: 1, TTL: time.Millisecond})
		},
	}
	for want, load := range cases {
		if _, err := load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, have %v", want, err)
		}
	}
}

func TestKeysAndValuesDependOnTheSeed(t *testing.T) {
	draw := func(seed uint64, client int) (out string) {
		d := testData()
		d.Seed = seed
		m, err := newMaterial(d)
		if err != nil {
			t.Fatal(err)
		}
		p := m.picker(client)
		for range 5 {
			out += string(p.nextKey()) + string(p.nextValue())
		}
		return out
	}
	if first, again := draw(1, 0), draw(1, 0); first != again {
		t.Error("the same seed gives different data")
	}
	if draw(1, 0) == draw(2, 0) || draw(1, 0) == draw(1, 1) {
		t.Error("different seeds or clients give the same data")
	}
}

func TestPrefixEnd(t *testing.T) {
	for prefix, want := range map[string]string{"a": "b", "a/": "a0", "a\xff": "b", "": "\x00", "\xff\xff": "\x00"} {
		if end := string(prefixEnd([]byte(prefix))); end != want {
			t.Errorf("the end of %q is %q, want %q", prefix, end, want)
		}
	}
}

func TestSleepPrecisely(t *testing.T) {
	for _, d := range []time.Duration{-time.Second, 100 * time.Microsecond, 5 * time.Millisecond} {
		until := time.Now().Add(d)
		if !sleepPrecisely(t.Context(), until) || time.Now().Before(until) {
			t.Errorf("%v: woke up %v too early", d, time.Until(until))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if sleepPrecisely(ctx, time.Now().Add(time.Hour)) {
		t.Error("slept on after the end")
	}
}
