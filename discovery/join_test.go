package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A service is a key space with what Join needs of one.
type service struct {
	clientv3.KV
	clientv3.Watcher

	mu       sync.Mutex
	revision int64
	kvs      []*mvccpb.KeyValue
	changed  chan struct{} // closed with the next change
	failures []error       // of the next requests
	hang     bool          // requests end with their context
	requests int
	watches  int
	breaks   int // watches that are yet to end at once
}

func newService(size string, members ...string) *service {
	s := &service{changed: make(chan struct{}), revision: 1}
	if size != "" {
		s.put("/_etcd/registry/t/_config/size", size)
	}
	for _, m := range members {
		id, value, _ := strings.Cut(m, " ")
		s.put("/_etcd/registry/t/members/"+id, value)
	}
	return s
}

func (s *service) registry() Registry {
	return Registry{KV: s, Watcher: s, Token: "t", RequestTimeout: 5 * time.Second, Logger: zap.NewNop()}
}

func (s *service) put(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.revision++
	defer func() {
		close(s.changed)
		s.changed = make(chan struct{})
	}()
	for _, kv := range s.kvs {
		if string(kv.Key) == key {
			kv.Value = []byte(value)
			return
		}
	}
	s.kvs = append(s.kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), CreateRevision: s.revision})
}

// asked is how many requests and watches there were. Who asks is on another goroutine, also when it waits.
func (s *service) asked() (requests, watches int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests, s.watches
}

func (s *service) keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, kv := range s.kvs {
		keys = append(keys, string(kv.Key))
	}
	return keys
}

// begin counts a request and lets it fail.
func (s *service) begin(ctx context.Context) error {
	s.mu.Lock()
	s.requests++
	hang := s.hang
	var err error
	if len(s.failures) > 0 {
		err, s.failures = s.failures[0], s.failures[1:]
	}
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (s *service) Put(ctx context.Context, key, value string, _ ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.put(key, value)
	return &clientv3.PutResponse{}, nil
}

// Get returns keys in their order, as etcd does.
func (s *service) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	op := clientv3.OpGet(key, opts...)
	resp := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: s.revision}}
	for _, kv := range s.kvs {
		if k := string(kv.Key); k == key || len(op.RangeBytes()) > 0 && k >= key && k < string(op.RangeBytes()) {
			resp.Kvs = append(resp.Kvs, &mvccpb.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: kv.CreateRevision})
		}
	}
	slices.SortFunc(resp.Kvs, func(a, b *mvccpb.KeyValue) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return resp, nil
}

// Watch tells of one change.
func (s *service) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches++
	c := make(chan clientv3.WatchResponse, 1)
	op := clientv3.OpGet(key, opts...)
	switch {
	case s.breaks > 0:
		s.breaks--
		close(c)
	case s.revision >= op.Rev():
		c <- clientv3.WatchResponse{}
	default:
		changed := s.changed
		go func() { // ends with the watch's context
			defer close(c)
			select {
			case <-changed:
				c <- clientv3.WatchResponse{}
			case <-ctx.Done():
			}
		}()
	}
	return c
}

func (s *service) Close() error { return nil }

func TestJoin(t *testing.T) {
	const a, b, c = "aa a=http://a:1", "bb b=http://b:1,b=http://b:2", "cc c=http://c:1"
	unavailable := errors.New("connection refused")
	for _, tt := range []struct {
		name     string
		size     string
		members  []string
		failures []error
		want     string // or the error's beginning
		entered  bool
	}{
		{"alone", "1", nil, nil, "x=http://x:1", true},
		{"the last", "3", []string{c, a}, nil, "c=http://c:1,a=http://a:1,x=http://x:1", true},
		{"of several URLs", "2", []string{b}, nil, "b=http://b:1,b=http://b:2,x=http://x:1", true},
		{"again", "2", []string{"7b x=http://old:1", a}, nil, "x=http://x:1,a=http://a:1", true},
		{"again, after too many came", "2", []string{"7b x=http://x:1", a, b}, nil, "x=http://x:1,a=http://a:1", true},
		{"full", "2", []string{a, b}, nil, "discovery: cluster is full", false},
		{"came too late before", "2", []string{a, b, "7b x=http://x:1"}, nil, "discovery: cluster is full", true},
		{"entries that are none", "2", []string{"ff nonsense", a}, nil, "a=http://a:1,x=http://x:1", true},
		{"spaces around an entry", "2", []string{"aa  a=http://a:1\n"}, nil, "a=http://a:1,x=http://x:1", true},
		{"no size", "", nil, nil, "the discovery service answers: discovery: size key not found: put the number of members there before they start: /_etcd/registry/t/_config/size", false},
		{"size zero", "0", nil, nil, `the discovery service answers: discovery: size key is bad: it must hold the number of members: /_etcd/registry/t/_config/size is "0"`, false},
		{"negative size", "-1", nil, nil, "the discovery service answers: discovery: size key is bad", false},
		{"size in words", "three", nil, nil, "the discovery service answers: discovery: size key is bad", false},
		{"two of one name", "2", []string{"aa x=http://a:1"}, nil, `discovery: two members have one name: give each its own --name, and make a new token: both are "x"`, true},
		{"a service that fails", "1", nil, []error{unavailable, nil, unavailable, unavailable, nil, unavailable}, "x=http://x:1", true},
		{"a service that knows no such user", "1", nil, []error{unavailable, rpctypes.ErrPermissionDenied},
			"the discovery service answers: etcdserver: permission denied", false},
		{"a service with authentication", "1", nil, []error{rpctypes.ErrUserEmpty}, "the discovery service answers: etcdserver: user name is empty", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newService(tt.size, tt.members...)
				s.failures = tt.failures
				got, err := Join(t.Context(), s.registry(), 123, "x=http://x:1")
				if err != nil {
					got = err.Error()
				}
				if !strings.HasPrefix(got, tt.want) || err == nil && got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if entered := slices.Contains(s.keys(), "/_etcd/registry/t/members/7b"); entered != tt.entered {
					t.Errorf("entered: %t", entered)
				}
			})
		})
	}
}

// TestJoinTogether starts members at one time, one more than there may be: all the others come to one answer.
func TestJoinTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService("3")
		s.breaks = 2
		answers := make([]string, 4)
		var group sync.WaitGroup
		for i := range answers {
			group.Go(func() {
				got, err := Join(t.Context(), s.registry(), uint64(i+1), fmt.Sprintf("m%d=http://h:%d", i, i))
				if err != nil {
					got = err.Error()
				}
				answers[i] = got
			})
		}
		group.Wait()
		refused := slices.IndexFunc(answers, func(a string) bool { return a == ErrFull.Error() })
		if refused < 0 {
			t.Fatalf("nobody was refused: %q", answers)
		}
		for i, answer := range answers {
			if i != refused && (answer != answers[(refused+1)%4] || !strings.Contains(answer, "m"+strconv.Itoa(i)+"=") || strings.Count(answer, "=") != 3) {
				t.Errorf("member %d: %s", i, answer)
			}
		}
	})
}

// TestJoinWaits has the others come one by one, and asks for no more than there is to know.
func TestJoinWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService("3")
		done := make(chan string)
		go func() { // ends with Join
			got, err := Join(t.Context(), s.registry(), 1, "a=http://a:1")
			if err != nil {
				got = err.Error()
			}
			done <- got
		}()
		time.Sleep(time.Hour)
		if requests, watches := s.asked(); requests != 5 || watches != 1 {
			t.Errorf("%d requests and %d watches while nobody came", requests, watches)
		}
		s.put("/_etcd/registry/t/members/2", "b=http://b:1")
		time.Sleep(time.Hour)
		select {
		case got := <-done:
			t.Fatalf("without the third: %s", got)
		default:
		}
		s.put("/_etcd/registry/t/members/3", "c=http://c:1")
		if got := <-done; got != "a=http://a:1,b=http://b:1,c=http://c:1" {
			t.Error(got)
		}
	})
}

func TestJoinEndsWithItsContext(t *testing.T) {
	for name, s := range map[string]*service{"nobody comes": newService("2"), "no answer": {hang: true}, "errors": {failures: slices.Repeat([]error{errors.New("x")}, 100)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s.changed = make(chan struct{})
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("interrupted"))
				defer cancel()
				began := time.Now()
				_, err := Join(ctx, s.registry(), 1, "a=http://a:1")
				if err == nil || err.Error() != "discovery: stopped before all members were found: interrupted" {
					t.Error(err)
				}
				if took := time.Since(began); took != time.Minute {
					t.Errorf("after %v", took)
				}
				if s.requests > 12 {
					t.Errorf("%d requests in a minute", s.requests)
				}
			})
		})
	}
}

// FuzzRoster reads what anybody may have written into a registry.
func FuzzRoster(f *testing.F) {
	f.Add("3", "a=http://a:1", "b=http://b:1,b=http://b:2")
	f.Add("-1", "=", "")
	f.Add("9223372036854775808", "\xff=", "a")
	f.Add("2", "a=x", "a=y")
	f.Fuzz(func(t *testing.T, size, first, second string) {
		s := newService(size, "1 "+first, "2 "+second)
		r := s.registry()
		found, err := r.read(t.Context())
		if err != nil {
			return
		}
		if found.size <= 0 {
			t.Errorf("size %q is read as %d", size, found.size)
		}
		if len(found.members) >= found.size {
			_, _ = found.cluster() // must not panic
		}
		found.counts("/_etcd/registry/t/members/1")
	})
}
