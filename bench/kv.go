package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// maxSpan bounds the keys that one measured range asks for.
const maxSpan = 1_000_000

// KV is what the key-value loads have in common.
type KV struct {
	Data
	// NoFill trusts that an earlier run with the same Data has written every key.
	NoFill bool
}

// RangeOptions say what a measured range asks for.
type RangeOptions struct {
	Serializable bool
	// Span is how many consecutive keys one request covers; 0 and 1 mean a point read.
	Span      int
	Limit     int64
	CountOnly bool
	KeysOnly  bool
}

func (r RangeOptions) validate(keys int) error {
	if r.Span < 0 || r.Span > min(keys, maxSpan) {
		return fmt.Errorf("a range of %d keys: must be between 0 and %d", r.Span, min(keys, maxSpan))
	}
	if r.Limit < 0 {
		return fmt.Errorf("a limit of %d: must not be negative", r.Limit)
	}
	return nil
}

// expect is how many keys an answer holds and how many it counts when the key space is filled.
func (r RangeOptions) expect() (kvs, count int) {
	count = max(r.Span, 1)
	kvs = count
	if r.Limit > 0 {
		kvs = min(kvs, int(r.Limit))
	}
	if r.CountOnly {
		kvs = 0
	}
	return kvs, count
}

// kvLoad is the base of the key-value loads: they have no streams and leave their keys behind.
type kvLoad struct {
	kv       KV
	material *material
	pool     *Pool
}

func newKVLoad(kv KV) (kvLoad, error) {
	m, err := newMaterial(kv.Data)
	return kvLoad{kv: kv, material: m}, err
}

func (l *kvLoad) prepareFilled(ctx context.Context, pool *Pool) error {
	l.pool = pool
	if l.kv.NoFill {
		return nil
	}
	return l.material.fill(ctx, pool)
}

func (l *kvLoad) Close(context.Context) error { return nil }

// NewPut returns a load of puts.
func NewPut(d Data) (Starter, error) {
	base, err := newKVLoad(KV{Data: d})
	return &putLoad{base}, err
}

type putLoad struct{ kvLoad }

func (l *putLoad) Name() string    { return "put" }
func (l *putLoad) Kinds() []string { return []string{"put"} }

func (l *putLoad) Prepare(_ context.Context, pool *Pool) error {
	l.pool = pool
	return nil
}

func (l *putLoad) Client(i int) Operation {
	put := putter(l.pool.conn(i).kv, l.material.picker(i))
	return func(ctx context.Context, _ time.Time) (Outcome, error) { return Outcome{}, put(ctx) }
}

func (l *putLoad) Start(i int) Start {
	return lightPut(l.material.picker(i), 0).start(l.pool.lightConn(i))
}

func putter(kv pb.KVClient, pick *picker) func(context.Context) error {
	next := puts(pick)
	return func(ctx context.Context) error {
		resp, err := kv.Put(ctx, next())
		if err == nil && resp.GetHeader().GetRevision() == 0 {
			return errNoRevision
		}
		return err
	}
}

func lightPut(pick *picker, kind int) unary {
	next := puts(pick)
	return unary{
		method: pb.KV_Put_FullMethodName, kind: kind,
		next: func(time.Time) proto.Message { return next() },
		check: func(answer []byte) error {
			if scan(answer).revision == 0 {
				return errNoRevision
			}
			return nil
		},
	}
}

var errNoRevision = fmt.Errorf("%w: a put without a revision", errWrongAnswer)

// puts makes one request after the other; each is valid until the next.
func puts(pick *picker) func() *pb.PutRequest {
	req := &pb.PutRequest{}
	return func() *pb.PutRequest {
		req.Key, req.Value = pick.nextKey(), pick.nextValue()
		return req
	}
}

// NewRange returns a load of ranges over a filled key space.
func NewRange(kv KV, o RangeOptions) (Load, error) {
	base, err := newKVLoad(kv)
	return &rangeLoad{base, o}, errors.Join(err, o.validate(kv.Keys))
}

type rangeLoad struct {
	kvLoad
	opts RangeOptions
}

func (l *rangeLoad) Name() string    { return "range" }
func (l *rangeLoad) Kinds() []string { return []string{"range"} }

func (l *rangeLoad) Prepare(ctx context.Context, pool *Pool) error { return l.prepareFilled(ctx, pool) }

func (l *rangeLoad) Client(i int) Operation {
	read := ranger(l.pool.conn(i).kv, l.material.picker(i), l.opts)
	return func(ctx context.Context, _ time.Time) (Outcome, error) { return Outcome{}, read(ctx) }
}

func (l *rangeLoad) Start(i int) Start {
	return lightRange(l.material.picker(i), l.opts, 0).start(l.pool.lightConn(i))
}

func ranger(kv pb.KVClient, pick *picker, o RangeOptions) func(context.Context) error {
	next := ranges(pick, o)
	return func(ctx context.Context) error {
		resp, err := kv.Range(ctx, next())
		if err != nil {
			return err
		}
		return o.check(len(resp.Kvs), resp.Count)
	}
}

func lightRange(pick *picker, o RangeOptions, kind int) unary {
	next := ranges(pick, o)
	return unary{
		method: pb.KV_Range_FullMethodName, kind: kind,
		next: func(time.Time) proto.Message { return next() },
		check: func(answer []byte) error {
			a := scan(answer)
			return o.check(a.items, a.count)
		},
	}
}

// ranges makes one request after the other; each is valid until the next.
func ranges(pick *picker, o RangeOptions) func() *pb.RangeRequest {
	req := &pb.RangeRequest{Serializable: o.Serializable, Limit: o.Limit, CountOnly: o.CountOnly, KeysOnly: o.KeysOnly}
	return func() *pb.RangeRequest {
		if o.Span > 1 {
			first := pick.number() % (pick.m.Keys - o.Span + 1)
			req.Key = pick.m.appendKey(req.Key[:0], first)
			last := pick.m.appendKey(req.RangeEnd[:0], first+o.Span-1)
			req.RangeEnd = append(last, 0) // the end is exclusive: the first key after the last
		} else {
			req.Key = pick.nextKey()
		}
		return req
	}
}

// check says what is wrong with an answer of so many keys and this count.
func (r RangeOptions) check(kvs int, count int64) error {
	wantKVs, wantCount := r.expect()
	if kvs != wantKVs || count != int64(wantCount) {
		return fmt.Errorf("%w: a range gave %d keys and counted %d, not %d and %d (is the key space filled?)",
			errWrongAnswer, kvs, count, wantKVs, wantCount)
	}
	return nil
}

// maxTxnPuts is below etcd's default limit of 128 operations.
const maxTxnPuts = 127

// NewTxn returns a load of transactions, each of which compares one key of a filled key space and,
// as the comparison holds, puts that key and its successors: puts of them in all.
func NewTxn(kv KV, puts int) (Load, error) {
	base, err := newKVLoad(kv)
	if puts < 1 || puts > min(maxTxnPuts, kv.Keys) {
		err = errors.Join(err, fmt.Errorf("%d puts in a transaction: must be between 1 and %d", puts, min(maxTxnPuts, kv.Keys)))
	}
	return &txnLoad{base, puts}, err
}

type txnLoad struct {
	kvLoad
	puts int
}

func (l *txnLoad) Name() string    { return "txn" }
func (l *txnLoad) Kinds() []string { return []string{"txn"} }

func (l *txnLoad) Prepare(ctx context.Context, pool *Pool) error { return l.prepareFilled(ctx, pool) }

func (l *txnLoad) Client(i int) Operation {
	kv, next := l.pool.conn(i).kv, l.requests(i)
	return func(ctx context.Context, _ time.Time) (Outcome, error) {
		resp, err := kv.Txn(ctx, next())
		if err == nil && !resp.Succeeded {
			err = errKeyMissing
		}
		return Outcome{}, err
	}
}

func (l *txnLoad) Start(i int) Start {
	next := l.requests(i)
	return unary{
		method: pb.KV_Txn_FullMethodName,
		next:   func(time.Time) proto.Message { return next() },
		check: func(answer []byte) error {
			if !scan(answer).succeeded {
				return errKeyMissing
			}
			return nil
		},
	}.start(l.pool.lightConn(i))
}

var errKeyMissing = fmt.Errorf("%w: the key is missing (is the key space filled?)", errWrongAnswer)

// requests makes one request after the other for client i; each is valid until the next.
func (l *txnLoad) requests(i int) func() *pb.TxnRequest {
	pick := l.material.picker(i)
	compare := &pb.Compare{
		Target: pb.Compare_MOD, Result: pb.Compare_GREATER,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: 0},
	}
	read := &pb.RangeRequest{}
	puts := make([]*pb.PutRequest, l.puts)
	req := &pb.TxnRequest{
		Compare: []*pb.Compare{compare},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: read}}},
	}
	for n := range puts {
		puts[n] = &pb.PutRequest{}
		req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: puts[n]}})
	}
	return func() *pb.TxnRequest {
		first := pick.number()
		for n, put := range puts {
			put.Key = l.material.appendKey(put.Key[:0], (first+n)%l.material.Keys)
			put.Value = pick.nextValue()
		}
		compare.Key, read.Key = puts[0].Key, puts[0].Key
		return req
	}
}

// NewMixed returns a load of ranges, the given share (0 to 1) of all requests, and puts.
func NewMixed(kv KV, o RangeOptions, reads float64) (Load, error) {
	base, err := newKVLoad(kv)
	if !(reads >= 0 && reads <= 1) {
		err = errors.Join(err, fmt.Errorf("a share of reads of %g: must be between 0 and 1", reads))
	}
	return &mixedLoad{base, o, reads}, errors.Join(err, o.validate(kv.Keys))
}

type mixedLoad struct {
	kvLoad
	opts  RangeOptions
	reads float64
}

const (
	mixedRange = iota
	mixedPut
)

func (l *mixedLoad) Name() string    { return "mixed" }
func (l *mixedLoad) Kinds() []string { return []string{mixedRange: "range", mixedPut: "put"} }

func (l *mixedLoad) Prepare(ctx context.Context, pool *Pool) error { return l.prepareFilled(ctx, pool) }

func (l *mixedLoad) Client(i int) Operation {
	kv, pick := l.pool.conn(i).kv, l.material.picker(i)
	read, put := ranger(kv, pick, l.opts), putter(kv, pick)
	return func(ctx context.Context, _ time.Time) (Outcome, error) {
		if pick.rng.Float64() < l.reads {
			return Outcome{Kind: mixedRange}, read(ctx)
		}
		return Outcome{Kind: mixedPut}, put(ctx)
	}
}

func (l *mixedLoad) Start(i int) Start {
	conn, pick := l.pool.lightConn(i), l.material.picker(i)
	read, put := lightRange(pick, l.opts, mixedRange).start(conn), lightPut(pick, mixedPut).start(conn)
	return func(due time.Time, done func(Outcome, error)) {
		if pick.rng.Float64() < l.reads {
			read(due, done)
		} else {
			put(due, done)
		}
	}
}
