package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"unsafe"

	"github.com/cockroachdb/pebble/v2"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Range reads a range of keys. The response's header has its revision only.
func (s *Store) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if err := s.read(); err != nil {
		return nil, err
	}
	defer s.reading.RUnlock()
	s.counters.ranges.Add(1)
	for {
		st := s.latest()
		resp, err := st.read(ctx, r, true)
		if !errors.Is(err, errStale) {
			return resp, err
		}
	}
}

// row is a key that a range found.
type row struct {
	item
	value  []byte
	loaded bool // the value is there
}

// read is Range on st. A range goes through the same stages as etcd's, for
// where they meet they show: those found in key order, up to a limit that is
// one above the request's; then filters; then the sort; then the limit. With
// a filter or a sort there is no limit at first, but a sort by anything but
// the key without a direction counts as no sort there, and is one afterwards.
//
// Without withTotal the count is only that of the rows found up to the limit.
func (st *state) read(ctx context.Context, r *pb.RangeRequest, withTotal bool) (*pb.RangeResponse, error) {
	rev := r.Revision
	if rev > st.rev {
		return nil, ErrFutureRev
	}
	if rev <= 0 {
		rev = st.rev
	}
	if rev < st.compact {
		return nil, ErrCompacted
	}
	q := query{RangeRequest: r, span: spanOf(r.Key, r.RangeEnd), limit: findLimit(r)}
	if q.span.single && rev == st.rev {
		return st.readKey(&q)
	}
	if r.CountOnly {
		count, err := st.count(ctx, &q.span, rev)
		if err != nil {
			return nil, err
		}
		return response(st.rev, count, nil, false), nil
	}
	rows, count, err := st.find(ctx, &q, rev, withTotal)
	if err != nil {
		return nil, err
	}
	if q.SortTarget == pb.RangeRequest_VALUE {
		if err := st.load(ctx, rev, rows); err != nil {
			return nil, err
		}
	}
	sortRows(rows, r)
	more := false
	if r.Limit > 0 && int64(len(rows)) > r.Limit {
		rows, more = rows[:r.Limit], true
	}
	if !r.KeysOnly {
		if err := st.load(ctx, rev, rows); err != nil {
			return nil, err
		}
	}
	return response(st.rev, count, q.pairs(rows), more), nil
}

// keyReply is a response with all that it has for one key, in one allocation.
type keyReply struct {
	resp   pb.RangeResponse
	header pb.ResponseHeader
	kvs    [1]*mvccpb.KeyValue
	kv     mvccpb.KeyValue
}

// readKey is read for one key of the index: the most frequent range there is.
// Neither limit nor sort has anything to do.
func (st *state) readKey(q *query) (*pb.RangeResponse, error) {
	reply := new(keyReply)
	resp := &reply.resp
	resp.Header = &reply.header
	resp.Header.Revision = st.rev
	it := st.index.get(q.span.from)
	if it == nil {
		return resp, nil
	}
	resp.Count = 1
	if q.CountOnly || !q.passes(it.create, it.mod) {
		return resp, nil
	}
	var value []byte
	if !q.KeysOnly {
		var err error
		if value, err = st.value(it); err != nil {
			return nil, err
		}
	}
	q.fill(&reply.kv, it, value)
	reply.kv.Key = []byte(it.key)
	reply.kvs[0] = &reply.kv
	resp.Kvs = reply.kvs[:]
	return resp, nil
}

func response(rev, count int64, kvs []*mvccpb.KeyValue, more bool) *pb.RangeResponse {
	return &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: rev}, Kvs: kvs, More: more, Count: count}
}

// query is a range request, with what follows from it.
type query struct {
	*pb.RangeRequest
	span  span
	limit int64 // on the rows found, see state.read; none if not positive
}

func findLimit(r *pb.RangeRequest) int64 {
	switch {
	case !defaultOrder(r) || filtered(r):
		return 0
	case r.Limit > 0 && r.Limit < math.MaxInt64:
		return r.Limit + 1
	}
	return r.Limit
}

// defaultOrder reports whether the order in which keys are found is taken for
// the one asked for.
func defaultOrder(r *pb.RangeRequest) bool {
	return r.SortOrder == pb.RangeRequest_NONE ||
		r.SortTarget == pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_ASCEND
}

func filtered(r *pb.RangeRequest) bool {
	return r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0
}

// passes reports whether the filters let a version through.
func (q *query) passes(create, mod int64) bool {
	return (q.MaxModRevision == 0 || mod <= q.MaxModRevision) &&
		(q.MinModRevision == 0 || mod >= q.MinModRevision) &&
		(q.MaxCreateRevision == 0 || create <= q.MaxCreateRevision) &&
		(q.MinCreateRevision == 0 || create >= q.MinCreateRevision)
}

// count counts the keys of sp alive at rev.
func (st *state) count(ctx context.Context, sp *span, rev int64) (int64, error) {
	if rev == st.rev {
		return int64(sp.count(&st.index)), nil
	}
	var n int64
	err := st.scan(ctx, sp, rev, func([]byte, int64, *record) bool {
		n++
		return true
	})
	return n, err
}

// find returns the rows of q at rev, filtered, and the number of keys in the
// range, which filters do not lower.
func (st *state) find(ctx context.Context, q *query, rev int64, withTotal bool) ([]row, int64, error) {
	if rev == st.rev {
		return st.findLive(ctx, q, withTotal)
	}
	return st.findPast(ctx, q, rev, withTotal)
}

// findLive finds rows in the index, without values.
func (st *state) findLive(ctx context.Context, q *query, withTotal bool) ([]row, int64, error) {
	lo, hi := q.span.ranks(&st.index)
	total := hi - lo
	if q.limit > 0 && int64(hi-lo) > q.limit {
		hi = lo + int(q.limit)
		if !withTotal {
			total = hi - lo
		}
	}
	// The last keys in descending order need no look at those before them.
	if n := q.Limit; n > 0 && q.SortOrder == pb.RangeRequest_DESCEND && q.SortTarget == pb.RangeRequest_KEY &&
		!filtered(q.RangeRequest) && int64(hi-lo) > n {
		lo = hi - int(n) - 1
	}
	n := hi - lo
	if n == 0 {
		return nil, int64(total), nil
	}
	size := n
	if filtered(q.RangeRequest) {
		size = 0
	}
	rows := make([]row, 0, size)
	st.index.ascendRank(lo, func(it *item) bool {
		if q.passes(it.create, it.mod) {
			rows = append(rows, row{item: *it})
		}
		n--
		return n > 0 && (n%checkEvery != 0 || ctx.Err() == nil)
	})
	if err := ctx.Err(); err != nil {
		return nil, 0, canceled(err)
	}
	return rows, int64(total), nil
}

func canceled(err error) error { return fmt.Errorf("mvcc: range: %w", err) }

// findPast finds rows in the history. It takes their values along where all of
// them will be wanted.
func (st *state) findPast(ctx context.Context, q *query, rev int64, withTotal bool) ([]row, int64, error) {
	all := q.Limit <= 0 || q.limit > 0
	withValue := q.SortTarget == pb.RangeRequest_VALUE || all && !q.KeysOnly
	var rows []row
	var total int64
	var mem arena
	err := st.scan(ctx, &q.span, rev, func(key []byte, main int64, r *record) bool {
		full := q.limit > 0 && int64(len(rows)) >= q.limit
		if full && !withTotal {
			return false
		}
		total++
		if full || !q.passes(r.create, main) {
			return true
		}
		found := row{item: item{
			key: aliasString(mem.keep(key)), create: r.create, mod: main, version: r.version, lease: r.lease,
		}}
		if withValue {
			found.value, found.loaded = mem.keep(r.value), true
		}
		rows = append(rows, found)
		return true
	})
	return rows, total, err
}

// pairs makes the pairs of the response.
func (q *query) pairs(rows []row) []*mvccpb.KeyValue {
	kvs := make([]mvccpb.KeyValue, len(rows))
	out := make([]*mvccpb.KeyValue, len(rows))
	mem := arena{expect: len(rows)}
	for i := range rows {
		r, kv := &rows[i], &kvs[i]
		kv.Key = mem.keep(unsafe.Slice(unsafe.StringData(r.key), len(r.key)))
		q.fill(kv, &r.item, r.value)
		out[i] = kv
	}
	return out
}

// fill fills all of kv but the key. Like etcd's, pairs without values have no
// lease either, unless they were sorted by value.
func (q *query) fill(kv *mvccpb.KeyValue, it *item, value []byte) {
	kv.CreateRevision = it.create
	kv.ModRevision = it.mod
	kv.Version = it.version
	if !q.KeysOnly {
		kv.Value = value
	}
	if !q.KeysOnly || q.SortTarget == pb.RangeRequest_VALUE {
		kv.Lease = it.lease
	}
}

// value returns the value of a key of st's index.
func (st *state) value(it *item) ([]byte, error) {
	if kv := st.written(it.key, it.mod); kv != nil {
		return kv.Value, nil
	}
	r, err := st.record(it.key, it.mod)
	return r.value, err
}

// getUpTo is the number of values that are read one by one; an iterator costs
// more to open, and less per value.
const getUpTo = 3

// load reads the values of rows that do not have them. The rows were found by
// a read at rev.
func (st *state) load(ctx context.Context, rev int64, rows []row) error {
	missing := 0
	for i := range rows {
		r := &rows[i]
		if r.loaded {
			continue
		}
		if kv := st.written(r.key, r.mod); kv != nil {
			r.value, r.loaded = kv.Value, true
			continue
		}
		missing++
	}
	switch {
	case missing == 0:
		return nil
	case missing <= getUpTo && rev == st.rev:
		return st.loadEach(rows)
	}
	return st.loadAll(ctx, rev, rows)
}

func (st *state) loadEach(rows []row) error {
	for i := range rows {
		r := &rows[i]
		if r.loaded {
			continue
		}
		v, err := st.value(&r.item)
		if err != nil {
			return err
		}
		r.value, r.loaded = v, true
	}
	return nil
}

// loadAll reads values through one iterator. None of them is in memory only, so
// the batch being applied need not be looked at.
func (st *state) loadAll(ctx context.Context, rev int64, rows []row) error {
	low, high := rows[0].key, rows[0].key
	for i := range rows {
		low, high = min(low, rows[i].key), max(high, rows[i].key)
	}
	if st.writing {
		rev = min(rev, st.s.w.base)
	}
	it, closer, err := st.iter(appendKeyPrefix(nil, low), appendAfterKey(nil, high), rev)
	if err != nil {
		return err
	}
	err = loadFrom(ctx, it, rows)
	return errors.Join(err, closer.Close())
}

func loadFrom(ctx context.Context, it *pebble.Iterator, rows []row) error {
	mem := arena{expect: len(rows)}
	var want []byte
	for i := range rows {
		if i%checkEvery == checkEvery-1 && ctx.Err() != nil {
			return canceled(ctx.Err())
		}
		r := &rows[i]
		if r.loaded {
			continue
		}
		want = appendHistoryKey(want[:0], r.key, r.mod)
		// In key order, and where keys have one version, the next is it.
		if !(it.Valid() && it.Next() && bytes.Equal(it.Key(), want)) &&
			!(it.SeekGE(want) && bytes.Equal(it.Key(), want)) {
			if err := it.Error(); err != nil {
				return err
			}
			return corruptf("key %q has no record of revision %d", r.key, r.mod)
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		rec, err := decodeRecord(v, r.mod)
		if err != nil {
			return keyError(r.key, r.mod, err)
		}
		r.value, r.loaded = mem.keep(rec.value), true
	}
	return nil
}

// arena keeps copies of many small byte strings in few allocations. They live
// as long as any of them.
type arena struct {
	free []byte
	size int
	// expect is how many more are to come, if that is known.
	expect int
}

const (
	arenaFirst = 256
	arenaMost  = 64 << 10
)

func (a *arena) keep(b []byte) []byte {
	if a.expect > 0 {
		a.expect--
	}
	if len(b) == 0 {
		return nil
	}
	if len(b) >= arenaMost/4 {
		return bytes.Clone(b)
	}
	if len(b) > len(a.free) {
		if a.expect > 0 {
			a.size = len(b) * (a.expect + 1) // they are often of one size
		} else {
			a.size = max(2*a.size, arenaFirst)
		}
		a.size = max(min(a.size, arenaMost), len(b))
		a.free = make([]byte, a.size)
	}
	out := a.free[:len(b):len(b)]
	copy(out, b)
	a.free = a.free[len(b):]
	return out
}
