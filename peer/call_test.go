package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestCall(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	echo(b)
	b.Handle("parts/of a name", func(_ context.Context, in []byte) ([]byte, error) { return in, nil })
	b.Handle("refuse", func(context.Context, []byte) ([]byte, error) {
		return nil, fmt.Errorf("wrapped: %w", &CallError{9, "not now"})
	})
	b.Handle("fail", func(context.Context, []byte) ([]byte, error) { return nil, errors.New("broken") })
	ended := make(chan struct{})
	b.Handle("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	introduce(a, b)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	large := strings.Repeat("x", 1<<20)
	if out, err := a.Call(ctx, 2, "echo", []byte(large)); err != nil || string(out) != large {
		t.Errorf("echo: %d bytes, %v", len(out), err)
	}
	if out, err := a.Call(ctx, 2, "parts/of a name", []byte("x")); err != nil || string(out) != "x" {
		t.Errorf("a name of two parts: %q, %v", out, err)
	}
	if out, err := a.Call(ctx, 2, "echo", nil); err != nil || len(out) != 0 {
		t.Errorf("echo of nothing: %q, %v", out, err)
	}
	for method, want := range map[string]*CallError{
		"refuse":  {9, "not now"},
		"fail":    {codeUnknown, "broken"},
		"unknown": {codeUnimplemented, `member 2 knows no call "unknown": it may run another version`},
	} {
		_, err := a.Call(ctx, 2, method, nil)
		var got *CallError
		if !errors.As(err, &got) || *got != *want {
			t.Errorf("%s: %v", method, err)
		}
	}
	if _, err := a.Call(ctx, 7, "echo", nil); !errors.Is(err, ErrUnknownMember) {
		t.Errorf("unknown member: %v", err)
	}
	if _, err := a.Call(ctx, 2, "echo", make([]byte, maxCall+1)); err == nil {
		t.Error("a call of any length is made")
	}

	short, stop := context.WithTimeout(ctx, 20*time.Millisecond)
	defer stop()
	if _, err := a.Call(short, 2, "wait", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ctx: %v", err)
	}
	select {
	case <-ended:
	case <-ctx.Done():
		t.Error("the far side goes on though the caller has given up")
	}
}

// Close, of either side, ends calls.
func TestCallClosed(t *testing.T) {
	for _, c := range []struct {
		name  string
		close func(a, b *node)
	}{
		{"caller", func(a, _ *node) { a.Close() }},
		{"answerer", func(_, b *node) { b.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := start(t, 1), start(t, 2)
			begun := make(chan struct{})
			b.Handle("wait", func(ctx context.Context, _ []byte) ([]byte, error) {
				close(begun)
				<-ctx.Done()
				return nil, ctx.Err()
			})
			introduce(a, b)
			failed := make(chan error, 1)
			go func() {
				_, err := a.Call(context.Background(), 2, "wait", nil)
				failed <- err
			}()
			<-begun
			c.close(a, b)
			if err := <-failed; err == nil {
				t.Error("no error")
			}
			if _, err := a.Call(context.Background(), 2, "wait", nil); err == nil {
				t.Error("a call after it: no error")
			}
		})
	}
}

// A call tries the next URL when nobody listens at one, and a refusal's text
// arrives.
func TestCallAddresses(t *testing.T) {
	a, b := start(t, 1), start(t, 2)
	echo(b)
	nowhere := listen(t)
	dead := "http://" + nowhere.Addr().String()
	nowhere.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a.Update([]Member{{2, []string{dead, b.url}}, {3, []string{b.url}}, {4, nil}}, nil)
	if _, err := a.Call(ctx, 2, "echo", nil); err != nil {
		t.Error(err)
	}
	if _, err := a.Call(ctx, 3, "echo", nil); err == nil || !strings.Contains(err.Error(), "this is member 2, and member 3 is asked for") {
		t.Errorf("wrong member: %v", err)
	}
	if _, err := a.Call(ctx, 4, "echo", nil); err == nil || !strings.Contains(err.Error(), "no peer URL") {
		t.Errorf("no URL: %v", err)
	}
}

func TestFetch(t *testing.T) {
	answer := func(cluster, body string) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/members" {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("X-Etcd-Cluster-ID", cluster)
			fmt.Fprint(w, body)
		}))
		t.Cleanup(s.Close)
		return s
	}
	good := answer("cdf818194e3a8c32", `[{"id":10276657743932975437,"peerURLs":["http://a:1"],"name":"m","clientURLs":["http://a:2"]},{"id":7,"peerURLs":["http://b:1"],"isLearner":true}]`)
	nobody := answer("1", `[]`)
	nameless := answer("", `[{"id":7}]`)
	garbled := answer("1", `{`)
	endless := answer("1", strings.Repeat(" ", maxMembers+1))
	missing := httptest.NewServer(http.NotFoundHandler())
	defer missing.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	bad := []string{nobody.URL, nameless.URL, garbled.URL, endless.URL, missing.URL, "ftp://x"}
	hung := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hung.Close()
	answers, err := Fetch(ctx, append(bad, hung.URL, good.URL), 50*time.Millisecond, nil)
	want := []Fetched{{0xcdf818194e3a8c32, []FetchedMember{
		{ID: 10276657743932975437, PeerURLs: []string{"http://a:1"}, Name: "m", ClientURLs: []string{"http://a:2"}},
		{ID: 7, PeerURLs: []string{"http://b:1"}, IsLearner: true},
	}}}
	if err != nil || !reflect.DeepEqual(answers, want) {
		t.Errorf("%+v %v", answers, err)
	}
	_, err = Fetch(ctx, bad, time.Second, nil)
	for _, url := range bad {
		if err == nil || !strings.Contains(err.Error(), url) {
			t.Errorf("%s is missing in: %v", url, err)
		}
	}
	if _, err := Fetch(ctx, nil, time.Second, nil); err == nil {
		t.Error("no URLs, no error")
	}
}
