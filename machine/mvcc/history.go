package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// nextsBeforeSeek is how many versions a scan steps over one by one before
	// it seeks past the rest: few old versions are the rule, and a step is
	// several times cheaper than a seek.
	nextsBeforeSeek = 4
	// checkEvery is how many steps of a long loop go between two looks at
	// whether its caller still wants the result.
	checkEvery = 256
)

// scan calls fn with each key of sp that is alive at rev, in order, with its
// newest version up to rev, until fn returns false. Key and record point into
// memory that the next step overwrites.
func (st *state) scan(ctx context.Context, sp *span, rev int64, fn func(key []byte, main int64, r *record) bool) error {
	if sp.empty() {
		return nil
	}
	lower, upper := sp.bounds()
	it, closer, err := st.iter(lower, upper, rev)
	if err != nil {
		return err
	}
	err = scanHistory(ctx, it, rev, fn)
	if cerr := closer.Close(); err == nil {
		err = cerr
	}
	return err
}

// scanHistory is scan over all that it covers.
func scanHistory(ctx context.Context, it *pebble.Iterator, rev int64, fn func(key []byte, main int64, r *record) bool) error {
	var (
		done  []byte // prefix of the key dealt with last
		seek  []byte
		key   []byte
		rec   record
		steps int // spent on versions that are not wanted, since the last seek or key
	)
	step := func(target []byte) bool {
		if steps++; steps <= nextsBeforeSeek {
			return it.Next()
		}
		steps = 0
		return it.SeekGE(target)
	}
	n := 0
	for ok := it.First(); ok; {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return fmt.Errorf("mvcc: read of the history: %w", ctx.Err())
		}
		prefix, main, err := splitHistoryKey(it.Key())
		if err != nil {
			return err
		}
		if bytes.Equal(prefix, done) { // an older version
			seek = append(seek[:0], done...)
			seek[len(seek)-1] = afterKey
			ok = step(seek)
			continue
		}
		if main > rev {
			seek = binary.BigEndian.AppendUint64(append(seek[:0], prefix...), ^uint64(rev))
			ok = step(seek)
			continue
		}
		steps = 0
		done = append(done[:0], prefix...)
		more, err := scanVersion(it, &key, &rec, prefix, main, fn)
		if err != nil || !more {
			return err
		}
		ok = it.Next()
	}
	return it.Error()
}

// scanVersion hands the version that it stands on to fn, unless it is a
// tombstone. The memory of key and rec is used again.
func scanVersion(it *pebble.Iterator, key *[]byte, rec *record, prefix []byte, main int64, fn func([]byte, int64, *record) bool) (bool, error) {
	var err error
	if *key, err = unescapeKey((*key)[:0], prefix); err != nil {
		return false, err
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return false, err
	}
	if *rec, err = decodeRecord(v, main); err != nil {
		return false, keyError(string(*key), main, err)
	}
	return rec.tombstone || fn(*key, main, rec), nil
}

// keyError adds to an error about a record which one it was.
func keyError(key string, main int64, err error) error {
	return fmt.Errorf("record of key %q at revision %d: %w", key, main, err)
}
