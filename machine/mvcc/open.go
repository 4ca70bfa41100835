package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/engine"
)

// formatVersion is the version of the format in docs/format-mvcc.md.
const formatVersion = 2

// ErrFormat is returned by Open for data of a version it does not know.
var ErrFormat = errors.New("mvcc: data of an unknown format version")

// noLeases stands in for a lease table where there is none.
type noLeases struct{}

func (noLeases) Has(int64) bool       { return false }
func (noLeases) Attach(int64, string) {}
func (noLeases) Detach(int64, string) {}

// Open loads the key space from eng: the index from its image and what was
// changed since, or by a scan of the whole history, and attaches keys to their
// leases. A physical compaction that was not finished goes on in the background.
// A nil leases means that there are none.
func Open(eng *engine.Engine, leases Leases, o Options) (*Store, error) {
	start := time.Now()
	o = o.withDefaults()
	if leases == nil {
		leases = noLeases{}
	}
	if eng.Merger() != Merger {
		return nil, errors.New("mvcc: the engine was opened without mvcc.Merger")
	}
	s := &Store{eng: eng, leases: leases, log: o.Logger, streamChunkBytes: o.StreamChunkBytes, commandBytes: maxCommandBytes}
	if err := s.checkFormat(); err != nil {
		return nil, err
	}
	m, err := s.loadMeta()
	if err != nil {
		return nil, err
	}
	image, err := s.loadIndex(m, o.Gently)
	if err != nil {
		return nil, err
	}
	s.w.rev, s.w.base = m.rev, m.rev
	s.w.indexed = newIndexWriter()
	s.w.compact = m.scheduled
	s.w.written = m.written
	s.written.Store(m.written)
	s.freed.Store(m.freed)
	s.floor.Store(m.scheduled)
	s.view.Store(&view{rev: m.rev, compact: m.scheduled, index: s.w.index.freeze()})
	s.log.Info("key space loaded", zap.Int64("revision", m.rev), zap.Int("keys", s.w.index.root.size),
		zap.Int64("compact-revision", m.scheduled), zap.Int64("compaction-finished", m.finished),
		zap.Int64("image-revision", image.rev), zap.Duration("took", time.Since(start)))

	s.images = newImager(s, o.Logger, image)
	s.compactor = newCompactor(s, o, m.finished, m.scheduled)
	go s.images.run()    // until Close, which waits for it
	go s.compactor.run() // likewise
	return s, nil
}

// MarkFormat adds to b, the first batch of an engine, the version of what Open
// will find there.
func MarkFormat(b *pebble.Batch) error { return b.Set(metaFormat, []byte{formatVersion}, nil) }

// checkFormat refuses data of another version, and marks an empty engine.
func (s *Store) checkFormat() error {
	v, err := s.eng.Get(metaFormat, nil)
	switch {
	case err == nil && (len(v) != 1 || v[0] != formatVersion):
		return fmt.Errorf("%w: found %x, know %d", ErrFormat, v, formatVersion)
	case err == nil:
		return nil
	case !errors.Is(err, engine.ErrNotFound):
		return err
	}
	b := s.eng.NewBatch()
	if err := MarkFormat(b); err != nil {
		return errors.Join(err, b.Close())
	}
	return errors.Join(s.eng.Commit(b), b.Close())
}

// meta is what is known before the history is read.
type meta struct {
	rev                 int64
	scheduled, finished int64 // compactions
	written, freed      int64
}

func (s *Store) loadMeta() (m meta, err error) {
	if m.scheduled, err = s.metaInt(metaScheduled, noCompaction); err != nil {
		return m, err
	}
	if m.finished, err = s.metaInt(metaFinished, noCompaction); err != nil {
		return m, err
	}
	if m.freed, err = s.metaInt(metaFreed, 0); err != nil {
		return m, err
	}
	if m.finished > m.scheduled {
		return m, corruptf("compaction to revision %d is finished, but only one to %d was asked for", m.finished, m.scheduled)
	}
	m.rev, m.written, err = s.lastRevision()
	if err == nil && m.rev < m.scheduled {
		err = corruptf("history ends at revision %d, below the compacted revision %d", m.rev, m.scheduled)
	}
	return m, err
}

// metaInt reads a number of the meta space, absent if it is not there.
func (s *Store) metaInt(key []byte, absent int64) (int64, error) {
	v, err := s.eng.Get(key, nil)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return absent, nil
	case err != nil:
		return 0, err
	case len(v) != 8:
		return 0, corruptf("meta record %q has %d bytes instead of 8", key, len(v))
	}
	return int64(binary.BigEndian.Uint64(v)), nil
}

// lastRevision reads the end of the revision index. The records of the newest
// revision are never compacted, so it is there if anything was ever written.
func (s *Store) lastRevision() (rev, written int64, err error) {
	it, err := s.eng.NewIter(revisionLower, revisionUpper)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	if !it.Last() {
		return 1, 0, it.Error()
	}
	rev, sub, err := splitRevisionKey(it.Key())
	if err != nil {
		return 0, 0, err
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return 0, 0, err
	}
	written, items, err := decodeIndexRecord(v)
	for ok := err == nil; ok; {
		ok, err = items.next()
	}
	if err == nil && items.revision != (revision{rev, sub}) {
		err = corruptf("the revision index ends at %d/%d, its last record says %d/%d", items.main, items.sub, rev, sub)
	}
	return rev, written, err
}
