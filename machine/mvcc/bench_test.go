package mvcc

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

const benchKeys = 1_000_000

func benchKey(dst []byte, i int) []byte { return fmt.Appendf(dst, "/registry/pods/%08d", i%benchKeys) }

// filled returns a store with n keys of 256 bytes.
func filled(b *testing.B, n int) *harness {
	h := newHarness(b)
	value := bytes.Repeat([]byte{'v'}, 256)
	for i := 0; i < n; {
		h.apply(func() {
			for range min(1000, n-i) {
				if _, err := h.s.Put(&pb.PutRequest{Key: benchKey(nil, i), Value: value}); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
	return h
}

// BenchmarkPut overwrites keys all over a space of 100,000, with and without
// the engine's part.
func BenchmarkPut(b *testing.B) {
	for _, batch := range []int{1, 100} {
		for _, commit := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%d/commit=%t", batch, commit), func(b *testing.B) {
				h := filled(b, 100_000)
				value := bytes.Repeat([]byte{'v'}, 256)
				reqs := make([]*pb.PutRequest, 4096)
				for i := range reqs {
					reqs[i] = &pb.PutRequest{Key: benchKey(nil, i*7919%100_000), Value: value}
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := 0; i < b.N; {
					eb := h.eng.NewBatch()
					h.s.Begin(eb)
					for range batch {
						if _, err := h.s.Put(reqs[i%len(reqs)]); err != nil {
							b.Fatal(err)
						}
						i++
					}
					h.s.Complete()
					if commit {
						if err := h.eng.Commit(eb); err != nil {
							b.Fatal(err)
						}
					}
					h.s.Publish()
					if err := eb.Close(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkRange(b *testing.B) {
	h := filled(b, 100_000)
	if err := h.eng.Flush(); err != nil {
		b.Fatal(err)
	}
	for name, r := range map[string]*pb.RangeRequest{
		"one":         {Key: benchKey(nil, 4711)},
		"page-of-100": {Key: benchKey(nil, 4711), RangeEnd: []byte{0}, Limit: 100},
		"count":       {Key: benchKey(nil, 4711), RangeEnd: []byte{0}, CountOnly: true},
		"last-key":    {Key: []byte{0}, RangeEnd: []byte{0}, Limit: 1, SortOrder: pb.RangeRequest_DESCEND},
		"past-100":    {Key: benchKey(nil, 4711), RangeEnd: benchKey(nil, 4811), Revision: 90_000},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, err := h.s.Range(context.Background(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCompaction takes out the first of two versions of every key, which came in the order of the second ones or in another:
// the time of an operation is that of one version, without the pauses.
func BenchmarkCompaction(b *testing.B) {
	const keys, batch = 100_000, 1000
	for _, order := range []string{"same", "another"} {
		b.Run(order, func(b *testing.B) {
			h := newHarness(b)
			h.opts = Options{CompactionSleep: time.Nanosecond}
			h.close()
			h.open()
			at := rand.New(rand.NewPCG(1, 1)).Perm(keys)
			for range b.N {
				for round := range 2 {
					for i := 0; i < keys; i += batch {
						h.apply(func() {
							for j := i; j < i+batch; j++ {
								key := j
								if round == 1 && order == "another" {
									key = at[j]
								}
								_, err := h.s.Put(&pb.PutRequest{Key: benchKey(nil, key)})
								must(b, err)
							}
						})
					}
				}
				must(b, h.eng.Flush())
				began := time.Now()
				h.compact(h.s.Revision())
				b.ReportMetric(float64(time.Since(began).Nanoseconds())/keys, "ns/version")
			}
		})
	}
}

// BenchmarkOpen loads a million keys: without an image of the index, with one, and
// with one that lacks the last changes.
func BenchmarkOpen(b *testing.B) {
	h := filled(b, benchKeys)
	open := func(b *testing.B) {
		if err := h.eng.Flush(); err != nil {
			b.Fatal(err)
		}
		b.ResetTimer()
		for range b.N {
			s, err := Open(h.eng, nil, Options{})
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	}
	b.Run("history", open)
	if err := h.s.SaveIndex(); err != nil {
		b.Fatal(err)
	}
	b.Run("image", open)
	for i := range 50_000 {
		h.put(string(benchKey(nil, i*7919)), "changed")
	}
	b.Run("tail", open)
}
