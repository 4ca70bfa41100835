package mvcc

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
)

// imager keeps an image of the index in the engine, and renews it, on a
// goroutine of its own, when Open would have much to read beyond it.
//
// An image is of use as long as the history still has the newest version of
// every key changed after it, tombstones included. Compaction takes tombstones
// away, and so says beforehand up to where it will: see expire.
type imager struct {
	s   *Store
	log *zap.Logger
	// interval is the least time between two images that are made of themselves.
	interval time.Duration
	// chunkBytes and batchBytes are the constants, but for tests.
	chunkBytes, batchBytes int

	making sync.Mutex // held while an image is written; before mu
	// mu guards head, and is held while the head is written or deleted.
	mu   sync.Mutex
	head imageHead // zero without an image
	// rev is head.rev.
	rev atomic.Int64

	wake    chan struct{} // of one: an image is due
	stop    chan struct{}
	stopped chan struct{}
}

const (
	// imageInterval bounds what images cost when all keys change all the time.
	imageInterval = 30 * time.Second
	// An image is renewed when as many revisions have come since as a share of the
	// keys, and many enough for it to matter.
	imageShare  = 8
	imageLeast  = 1 << 16
	imageAtRest = 1 << 12 // when the store is about to be closed or copied
	// imageBatchBytes is how much of an image is written between two pauses, so that
	// commits do not have to wait for it.
	imageBatchBytes = 1 << 20
	imagePause      = time.Millisecond
)

func newImager(s *Store, log *zap.Logger, head imageHead) *imager {
	m := &imager{
		s: s, log: log, interval: imageInterval, head: head,
		chunkBytes: imageChunkBytes, batchBytes: imageBatchBytes,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	m.rev.Store(head.rev)
	return m
}

// look asks for an image if one is due. It is called with every view published.
func (m *imager) look(v *view) {
	if v.rev-m.rev.Load() < max(imageLeast, int64(v.index.size)/imageShare) {
		return
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// run is the goroutine: started by Open, ended by close.
func (m *imager) run() {
	defer close(m.stopped)
	select {
	case <-m.s.eng.Writable():
	case <-m.stop:
		return
	}
	m.look(m.s.view.Load()) // there may be none
	for {
		select {
		case <-m.wake:
		case <-m.stop:
			return
		}
		if err := m.save(imageLeast); err != nil {
			if !errors.Is(err, errStopped) {
				m.log.Error("no image of the index; the next start reads the history", zap.Error(err))
			}
			return // the engine has told its owner
		}
		t := time.NewTimer(m.interval)
		select {
		case <-t.C:
		case <-m.stop:
			t.Stop()
			return
		}
	}
}

func (m *imager) close() {
	close(m.stop)
	<-m.stopped
}

// expire is told that compaction is about to delete versions up to to, from
// now on. An image that is older must not be found any more.
func (m *imager) expire(to int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.head.rev == 0 || m.head.rev >= to {
		return nil
	}
	b := m.s.eng.NewBatch()
	err := b.Delete(imageHeadKey, nil)
	if err == nil {
		err = m.s.eng.Commit(b)
	}
	if err = errors.Join(err, b.Close()); err != nil {
		return err
	}
	m.setHead(imageHead{generation: m.head.generation})
	m.look(m.s.view.Load())
	return nil
}

func (m *imager) setHead(h imageHead) {
	m.head = h
	m.rev.Store(h.rev)
}

func (m *imager) generation() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head.generation
}

// save makes an image of the published index if at least as many revisions have
// come since the last one.
func (m *imager) save(least int64) error {
	m.making.Lock()
	defer m.making.Unlock()
	v := m.s.view.Load()
	if v.rev-m.rev.Load() < least {
		return nil
	}
	start := time.Now()
	w := imageWriter{m: m, head: imageHead{generation: m.generation() + 1, rev: v.rev, keys: v.index.size}}
	size, err := w.write(&v.index)
	if err != nil {
		return err
	}
	m.log.Debug("index copied", zap.Int64("revision", v.rev), zap.Int("keys", v.index.size),
		zap.Int("bytes", size), zap.Duration("took", time.Since(start)))
	return nil
}

// imageWriter writes one image. Until its head is written, nothing reads it.
type imageWriter struct {
	m     *imager
	head  imageHead
	batch *pebble.Batch
	chunk chunkWriter
	size  int
}

func (w *imageWriter) write(idx *root) (size int, err error) {
	w.batch = w.m.s.eng.NewBatch()
	defer func() { err = errors.Join(err, w.batch.Close()) }()
	// An image that was begun and not finished may have left chunks.
	if err := w.batch.DeleteRange(appendImageChunkKey(nil, w.head.generation, 0), imageChunkUpper, nil); err != nil {
		return 0, err
	}
	w.chunk.reset()
	idx.ascend("", func(it *item) bool {
		w.chunk.add(it)
		if len(w.chunk.b) >= w.m.chunkBytes {
			err = w.put()
		}
		return err == nil
	})
	if err == nil && w.chunk.items > 0 {
		err = w.put()
	}
	if err != nil {
		return 0, err
	}
	return w.size, w.finish()
}

// put writes the chunk.
func (w *imageWriter) put() error {
	b := w.chunk.finish()
	if err := w.batch.Set(appendImageChunkKey(nil, w.head.generation, w.head.chunks), b, nil); err != nil {
		return err
	}
	w.size += len(b)
	w.head.chunks++
	w.chunk.reset()
	if w.batch.Len() < w.m.batchBytes {
		return nil
	}
	if err := w.m.s.eng.Commit(w.batch); err != nil {
		return err
	}
	if err := w.batch.Close(); err != nil {
		return err
	}
	w.batch = w.m.s.eng.NewBatch()
	return w.m.pause()
}

func (m *imager) pause() error {
	t := time.NewTimer(imagePause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-m.stop:
		return errStopped
	}
}

// finish makes the image the one that is found, unless compaction has passed it.
func (w *imageWriter) finish() error {
	m := w.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.s.floor.Load() > w.head.rev {
		return nil
	}
	if err := w.batch.DeleteRange(imageChunkLower, appendImageChunkKey(nil, w.head.generation, 0), nil); err != nil {
		return err
	}
	if err := w.batch.Set(imageHeadKey, appendImageHead(nil, &w.head), nil); err != nil {
		return err
	}
	if err := m.s.eng.Commit(w.batch); err != nil {
		return err
	}
	m.setHead(w.head)
	return nil
}

// SaveIndex makes the next Open of the engine, or of a copy of it, fast: it is
// called before a flush that ends the engine's use, or before it is copied. It
// does nothing if little has changed since it was done. Reads and commands may
// go on meanwhile.
func (s *Store) SaveIndex() error {
	if err := s.read(); err != nil {
		return err
	}
	defer s.reading.RUnlock()
	select {
	case <-s.eng.Writable():
	default:
		return nil
	}
	if err := s.images.save(imageAtRest); !errors.Is(err, errStopped) {
		return err
	}
	return nil
}
