package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/storage/engine"
)

// gentleWork is how long a gentle Open works before it rests.
const gentleWork = 2 * time.Millisecond

// alternate returns a function that is called between pieces of work, and waits
// as long as the work has taken since it last waited when that is a while.
func alternate(while time.Duration) func() {
	began := time.Now()
	return func() {
		if worked := time.Since(began); worked >= while {
			time.Sleep(worked)
			began = time.Now()
		}
	}
}

// loadIndex builds the index as of the last revision, and returns the image that
// the engine has. An image that does not check is no reason to fail: the history
// has all of it.
func (s *Store) loadIndex(m meta, gently bool) (imageHead, error) {
	rest, workers := func() {}, min(runtime.GOMAXPROCS(0), maxLoaders)
	if gently {
		rest, workers = alternate(gentleWork), 1
	}
	loaded := false
	image, err := s.imageHead()
	if err == nil {
		loaded, err = s.loadFromImage(&image, m, rest, workers)
	}
	if err != nil {
		loaded = false
		if !errors.Is(err, ErrCorrupt) {
			return image, err
		}
		s.log.Error("the image of the index is damaged; the history is read instead", zap.Error(err))
		image.rev = 1 // as old as can be: it is to be replaced, and deleted by any compaction
	}
	if !loaded {
		if err := s.loadFromHistory(m.rev, rest); err != nil {
			return image, err
		}
	}
	s.attachLeases()
	return image, nil
}

// attachLeases attaches the keys of the index to their leases.
func (s *Store) attachLeases() {
	unknown := 0
	s.w.index.root.ascend("", func(it *item) bool {
		switch {
		case it.lease == 0:
		case s.leases.Has(it.lease):
			s.leases.Attach(it.lease, it.key)
		default:
			unknown++
		}
		return true
	})
	if unknown > 0 {
		s.log.Error("keys belong to leases that do not exist", zap.Int("keys", unknown))
	}
}

// loadFromHistory builds the index from the newest version of every key, none of
// which may be above rev. It calls rest for each.
func (s *Store) loadFromHistory(rev int64, rest func()) error {
	it, err := s.eng.NewIter(historyLower, historyUpper)
	if err != nil {
		return err
	}
	s.w.index = tree{}
	newest := int64(0)
	err = scanHistory(context.Background(), it, math.MaxInt64, func(key []byte, main int64, r *record) bool {
		rest()
		e, _ := s.w.index.put(aliasString(key))
		e.create, e.mod, e.version, e.lease = r.create, main, r.version, r.lease
		newest = max(newest, main)
		return true
	})
	if err == nil && newest > rev {
		err = corruptf("the history reaches revision %d, but the revision index ends at %d", newest, rev)
	}
	return errors.Join(err, it.Close())
}

// imageTailShare: with more revisions after the image than one for as many keys of
// it, the history is read as fast.
const imageTailShare = 2

// loadFromImage builds the index from the image and what was changed after it.
// It reports false if there is no image, or none of use.
func (s *Store) loadFromImage(h *imageHead, m meta, rest func(), workers int) (bool, error) {
	switch {
	case h.rev == 0:
		return false, nil
	case h.rev > m.rev:
		return false, corruptf("%v is newer than revision %d, the last", h, m.rev)
	case h.rev < m.finished:
		return false, corruptf("%v is older than the compaction to %d", h, m.finished)
	case m.rev-h.rev > max(imageLeast, int64(h.keys)/imageTailShare):
		return false, nil
	}
	chunks, err := s.loadChunks(h, rest, workers)
	if err != nil {
		return false, err
	}
	t, err := treeOf(chunks)
	if err == nil && t.root.size != h.keys {
		err = corruptf("%v has %d keys", h, t.root.size)
	}
	if err != nil {
		return false, err
	}
	s.w.index = t
	return true, s.loadTail(h.rev, rest)
}

// imageHead reads which image the engine has. Without any the head is zero.
func (s *Store) imageHead() (h imageHead, err error) {
	b, err := s.eng.Get(imageHeadKey, nil)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		return h, nil
	case err != nil:
		return h, err
	}
	return decodeImageHead(b)
}

// maxLoaders bounds the goroutines that decode an image, beside the one that
// reads it.
const maxLoaders = 4

// loadChunks reads and decodes the chunks of an image.
func (s *Store) loadChunks(h *imageHead, rest func(), workers int) ([]chunk, error) {
	type decoding struct {
		b     []byte
		chunk chunk
		err   error
	}
	var all []*decoding // as many as there are; what the head says may be false
	work := make(chan *decoding, 2*workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { // ends with work, before this method returns
			for d := range work {
				d.chunk, d.err = decodeChunk(d.b, h.rev)
				d.b = nil
			}
		})
	}
	err := s.eachChunk(h, func(b []byte) {
		d := &decoding{b: bytes.Clone(b)}
		all = append(all, d)
		work <- d
		rest()
	})
	close(work)
	wg.Wait()
	chunks := make([]chunk, len(all))
	for i, d := range all {
		chunks[i], err = d.chunk, cmp.Or(err, d.err)
	}
	return chunks, err
}

// eachChunk calls fn with each chunk of an image, in order, as it is stored.
func (s *Store) eachChunk(h *imageHead, fn func([]byte)) (err error) {
	it, err := s.eng.NewIter(appendImageChunkKey(nil, h.generation, 0), appendImageChunkKey(nil, h.generation, h.chunks))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	var n uint32
	var key []byte
	for ok := it.First(); ok; ok = it.Next() {
		if key = appendImageChunkKey(key[:0], h.generation, n); !bytes.Equal(it.Key(), key) {
			break
		}
		b, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		fn(b)
		n++
	}
	if err := it.Error(); err != nil {
		return err
	}
	if n != h.chunks {
		return corruptf("%v lacks chunk %d", h, n)
	}
	return nil
}

// loadTail brings the index from the revision of the image to the last one.
func (s *Store) loadTail(from int64, rest func()) error {
	changed, err := s.changedAfter(from)
	if err != nil || len(changed) == 0 {
		return err
	}
	it, err := s.eng.NewIter(historyLower, historyUpper)
	if err != nil {
		return err
	}
	var want []byte
	for _, key := range slices.Sorted(maps.Keys(changed)) {
		rest()
		want = appendHistoryKey(want[:0], key, changed[key])
		if err = s.loadVersion(it, want, key, changed[key]); err != nil {
			break
		}
	}
	return errors.Join(err, it.Close())
}

// changedAfter returns the keys changed after a revision, with the last one that
// changed each.
func (s *Store) changedAfter(from int64) (changed map[string]int64, err error) {
	it, err := s.eng.NewIter(revisionLower, revisionUpper)
	if err != nil {
		return nil, err
	}
	changed = make(map[string]int64)
	err = eachItem(context.Background(), it, revision{from + 1, 0}, math.MaxInt64, func(item *indexItem) error {
		changed[string(item.key)] = item.main
		return nil
	})
	return changed, err
}

// loadVersion brings one key of the index to its newest version, which has the
// history key want.
func (s *Store) loadVersion(it *pebble.Iterator, want []byte, key string, main int64) error {
	if !it.SeekGE(want) || !bytes.Equal(it.Key(), want) {
		if err := it.Error(); err != nil {
			return err
		}
		return corruptf("key %q has no record of revision %d", key, main)
	}
	v, err := it.ValueAndErr()
	if err != nil {
		return err
	}
	r, err := decodeRecord(v, main)
	if err != nil {
		return keyError(key, main, err)
	}
	if r.tombstone {
		s.w.index.remove(key)
		return nil
	}
	e, _ := s.w.index.put(key)
	e.create, e.mod, e.version, e.lease = r.create, main, r.version, r.lease
	return nil
}
