package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync/atomic"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/sync/errgroup"
)

const (
	maxKeySpace  = 100_000_000
	maxKeyBytes  = 4 << 10
	maxValueSize = 64 << 20
	// valuePoolBytes is how much random data values are cut from: enough that neither compression
	// nor equal values flatter a server.
	valuePoolBytes = 1 << 20
	// A filling transaction stays below etcd's default limits for operations and bytes.
	maxFillOps   = 100
	maxFillBytes = 1 << 20
)

// Data says what keys and values a load uses. Key n is Prefix followed by n in decimal digits,
// KeySize bytes in all.
type Data struct {
	Prefix     string
	Keys       int // size of the key space
	KeySize    int // bytes
	ValueSize  int // bytes
	Sequential bool
	Seed       uint64
}

func (d Data) validate() error {
	switch digits := decimalDigits(d.Keys - 1); {
	case d.Keys < 1 || d.Keys > maxKeySpace:
		return fmt.Errorf("a key space of %d: must be between 1 and %d", d.Keys, maxKeySpace)
	case d.KeySize > maxKeyBytes:
		return fmt.Errorf("keys of %d bytes: at most %d", d.KeySize, maxKeyBytes)
	case d.KeySize < len(d.Prefix)+digits:
		return fmt.Errorf("keys of %d bytes cannot hold the prefix %q and %d digits", d.KeySize, d.Prefix, digits)
	case d.ValueSize < 0 || d.ValueSize > maxValueSize:
		return fmt.Errorf("values of %d bytes: must be between 0 and %d", d.ValueSize, maxValueSize)
	}
	return nil
}

func decimalDigits(n int) int {
	digits := 1
	for ; n >= 10; n /= 10 {
		digits++
	}
	return digits
}

// material is Data made ready for use by many clients.
type material struct {
	Data
	values []byte // random; every value is a part of it
	turn   atomic.Uint64
}

func newMaterial(d Data) (*material, error) {
	if err := d.validate(); err != nil {
		return nil, err
	}
	m := &material{Data: d, values: make([]byte, d.ValueSize+valuePoolBytes)}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], d.Seed)
	rand.NewChaCha8(seed).Read(m.values)
	return m, nil
}

// picker chooses keys and values for one client. What it returns is valid until its next call.
type picker struct {
	m   *material
	rng *rand.Rand
	key []byte
}

func (m *material) picker(client int) *picker {
	return &picker{m: m, rng: newRand(m.Seed, client), key: m.appendKey(nil, 0)}
}

func (p *picker) number() int {
	if p.m.Sequential {
		return int((p.m.turn.Add(1) - 1) % uint64(p.m.Keys))
	}
	return p.rng.IntN(p.m.Keys)
}

func (p *picker) nextKey() []byte {
	p.key = p.m.appendKey(p.key[:0], p.number())
	return p.key
}

func (p *picker) nextValue() []byte { return p.m.value(p.rng) }

func (m *material) value(rng *rand.Rand) []byte {
	at := rng.IntN(valuePoolBytes)
	return m.values[at : at+m.ValueSize : at+m.ValueSize]
}

func (m *material) appendKey(dst []byte, n int) []byte {
	dst = append(dst, m.Prefix...)
	start := len(dst)
	for range m.KeySize - len(m.Prefix) {
		dst = append(dst, '0')
	}
	for i := len(dst) - 1; i >= start && n > 0; i-- {
		dst[i] = byte('0' + n%10)
		n /= 10
	}
	return dst
}

// fill writes every key of the space once, in transactions of many keys.
func (m *material) fill(ctx context.Context, pool *Pool) error {
	perTxn := max(1, min(maxFillOps, maxFillBytes/(m.KeySize+m.ValueSize+32)))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for from := 0; from < m.Keys && ctx.Err() == nil; from += perTxn {
		g.Go(func() error {
			rng := newRand(m.Seed, -1-from)
			txn := &pb.TxnRequest{}
			for n := from; n < min(from+perTxn, m.Keys); n++ {
				put := &pb.PutRequest{Key: m.appendKey(nil, n), Value: m.value(rng)}
				txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
			}
			_, err := pool.conn(from/perTxn).kv.Txn(ctx, txn)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("filling the key space: %w", err)
	}
	return nil
}
