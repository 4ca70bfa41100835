package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
)

// compactor deletes, on a goroutine of its own, the versions that a compaction
// has made unreadable: those with a newer one at or below the compacted
// revision, and tombstones below it. What the compacted revision itself made
// stays whole, be it tombstones or what it changed again: watchers may still ask
// for its events.
//
// It goes by the revision index from the revision that the last pass finished
// to the new one, and deletes what each revision that it meets has superseded: what
// an earlier pass kept is superseded, if at all, by one of these. Each version
// has one deleter: itself for a tombstone and for one superseded within its
// revision, else the first change that the next revision made of the key. So a pass that a crash cut short is simply run
// again, and counts no byte twice.
type compactor struct {
	s     *Store
	limit int           // revisions per batch
	sleep time.Duration // between batches
	log   *zap.Logger

	mu       sync.Mutex
	target   int64           // guarded by mu
	finished int64           // guarded by mu
	closed   bool            // guarded by mu
	waiters  []compactWaiter // guarded by mu

	wake    chan struct{} // of one: target was raised
	stop    chan struct{}
	stopped chan struct{}
}

// compactWaiter is told when versions up to rev have been dealt with.
type compactWaiter struct {
	rev  int64
	done chan struct{}
}

// Whoever commits after a batch waits for it, so a batch is small, and so is what
// is done before others get their turn: with fewer processors than busy goroutines
// that would be 10 ms.
const (
	compactBatch = 100 // revisions
	compactTurn  = 8   // revisions
)

// A pass that fails, for what is not in the data, is repeated after a time that
// doubles from the first of these up to the second.
const (
	compactFirstRetry = time.Second
	compactLastRetry  = time.Minute
)

// It reads what it deletes, and leaves the disk to others for most of the time.
const (
	compactReadBatch = 2 << 20   // bytes
	compactReadRate  = 128 << 20 // bytes per second
)

func newCompactor(s *Store, o Options, finished, target int64) *compactor {
	limit := min(o.CompactionBatchLimit, compactBatch)
	return &compactor{
		s: s, limit: limit, sleep: o.CompactionSleep * time.Duration(limit) / time.Duration(o.CompactionBatchLimit), log: o.Logger,
		target: target, finished: finished,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
}

// schedule asks for a compaction up to target and takes over waiters. Targets
// that come in during a pass make one more pass together.
func (c *compactor) schedule(target int64, waiters []compactWaiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.target = max(c.target, target)
	c.waiters = append(c.waiters, waiters...)
	c.notify()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// notify closes the channels of those who need not wait any longer. With mu.
func (c *compactor) notify() {
	c.waiters = slices.DeleteFunc(c.waiters, func(w compactWaiter) bool {
		if w.rev > c.finished && !c.closed {
			return false
		}
		close(w.done)
		return true
	})
}

// close ends the goroutine, wherever it is in a pass, and waits for it.
func (c *compactor) close() {
	close(c.stop)
	<-c.stopped
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.notify()
}

// run is the goroutine: started by Open, ended by close.
func (c *compactor) run() {
	defer close(c.stopped)
	select {
	case <-c.s.eng.Writable():
	case <-c.stop:
		return
	}
	pause := compactFirstRetry
	for {
		c.mu.Lock()
		from, to := c.finished, c.target
		c.mu.Unlock()
		if from < to {
			start := time.Now()
			deleted, err := c.pass(from, to)
			switch {
			case errors.Is(err, errStopped):
				return
			case errors.Is(err, ErrCorrupt):
				// It would be met again. Reads go on.
				c.log.Error("compaction stopped", zap.Int64("revision", to), zap.Error(err))
				<-c.stop
				return
			case err != nil:
				c.log.Warn("compaction failed; trying again", zap.Int64("revision", to), zap.Error(err), zap.Duration("after", pause))
				select {
				case <-time.After(pause):
				case <-c.stop:
					return
				}
				pause = min(2*pause, compactLastRetry)
				continue
			}
			pause = compactFirstRetry
			c.log.Info("finished compaction", zap.Int64("revision", to),
				zap.Int64("deleted", deleted), zap.Duration("took", time.Since(start)))
			c.mu.Lock()
			c.finished = to
			c.notify()
			c.mu.Unlock()
			continue
		}
		select {
		case <-c.wake:
		case <-c.stop:
			return
		}
	}
}

var errStopped = errors.New("mvcc: compactor stopped")

// pass deletes what a compaction to to makes unreadable, after one to from.
func (c *compactor) pass(from, to int64) (deleted int64, err error) {
	// Readers whose view is below the floor start over on a newer one. There
	// is one: to is published.
	c.s.floor.Store(to)
	if err := c.s.images.expire(to); err != nil {
		return 0, err
	}
	next := revision{max(from, 0), 0}
	var known knownRecords
	for {
		known.bound() // here, for they count what the batches have taken out
		b := c.s.eng.NewBatch()
		p := passStep{c: c, batch: b, known: &known, to: to}
		next, err = p.run(next)
		last := next.main > to
		if err == nil {
			err = p.commit(last)
		}
		err = errors.Join(err, b.Close())
		if err != nil {
			return deleted, err
		}
		deleted += p.deleted
		if last {
			return deleted, nil
		}
		if !c.pause(p.read) {
			return deleted, errStopped
		}
	}
}

// pause sleeps after a batch that has read so many bytes. It reports false if
// the compactor is to stop.
func (c *compactor) pause(read int) bool {
	t := time.NewTimer(max(c.sleep, time.Duration(read)*time.Second/compactReadRate))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.stop:
		return false
	}
}

// passStep is one batch of a pass.
type passStep struct {
	c       *compactor
	batch   *pebble.Batch
	index   *pebble.Iterator // over the revision index
	known   *knownRecords    // of it
	to      int64
	deleted int64
	freed   int64
	read    int    // bytes of records
	key     []byte // scratch
	rec     record // the record that was decoded last
	size    int    // its length
}

// run deals with the next revisions from next on, and returns where to go on,
// above p.to at the end.
func (p *passStep) run(next revision) (cont revision, err error) {
	if p.index, err = p.c.s.eng.NewIter(revisionLower, revisionUpper); err != nil {
		return next, err
	}
	defer func() { err = errors.Join(err, p.index.Close()) }()
	hist, err := p.c.s.eng.NewIter(historyLower, historyUpper)
	if err != nil {
		return next, err
	}
	defer func() { err = errors.Join(err, hist.Close()) }()
	revs, err := p.c.s.eng.NewIter(revisionLower, revisionUpper)
	if err != nil {
		return next, err
	}
	cont = revision{p.to + 1, 0}
	n := 0
	err = eachItem(context.Background(), revs, next, p.to, func(item *indexItem) error {
		if n++; n > p.c.limit || p.read > compactReadBatch {
			cont = item.revision
			return errEnough
		}
		if n%compactTurn == 0 {
			runtime.Gosched()
		}
		return p.revision(item, hist)
	})
	if err == errEnough {
		err = nil
	}
	return cont, err
}

// revision deals with one version, and, if it is the first that its revision made of the key, with the one before.
func (p *passStep) revision(item *indexItem, hist *pebble.Iterator) error {
	main, key := item.main, item.key
	p.key = appendHistoryKey(p.key[:0], aliasString(key), main)
	r, err := p.seek(hist, main)
	if err != nil {
		return err
	}
	superseded := r.sub != item.sub
	if superseded {
		p.key = binary.BigEndian.AppendUint64(p.key, ^uint64(item.sub))
		if r, err = p.seek(hist, main); err != nil {
			return err
		}
	}
	made := !r.tombstone && r.create == main
	if main < p.to && (superseded || r.tombstone) {
		if err := p.delete(hist, main, r, len(key)); err != nil {
			return err
		}
	}
	return p.predecessor(hist, main, aliasString(key), made)
}

// seek moves hist to the record of p.key, which must be there.
func (p *passStep) seek(hist *pebble.Iterator, main int64) (*record, error) {
	if !hist.SeekGE(p.key) || !bytes.Equal(hist.Key(), p.key) {
		if err := hist.Error(); err != nil {
			return nil, err
		}
		return nil, corruptf("history key %x is missing, though the revision index names it", p.key)
	}
	return p.decode(hist, main)
}

// decode decodes the record that hist stands on.
func (p *passStep) decode(hist *pebble.Iterator, main int64) (*record, error) {
	b, err := hist.ValueAndErr()
	if err != nil {
		return nil, err
	}
	p.size = len(b)
	p.read += p.size
	if p.rec, err = decodeRecord(b, main); err != nil {
		return nil, keyError(string(hist.Key()), main, err)
	}
	return &p.rec, nil
}

// predecessor deletes the version before that of main which hist stands on, if it is the last one of an earlier revision, unless
// it is a tombstone. Before one that made the key there is nothing else, and it is not looked for: behind it lies all that the engine
// has not forgotten yet of the key's earlier lives.
func (p *passStep) predecessor(hist *pebble.Iterator, main int64, key string, made bool) error {
	p.key = appendHistoryKey(p.key[:0], key, main-1) // or after that: the first place for another revision's
	state := hist.NextWithLimit(p.key)
	if state == pebble.IterAtLimit && !made && hist.Next() {
		state = pebble.IterValid
	}
	if state != pebble.IterValid {
		return hist.Error()
	}
	prefix, older, err := splitHistoryKey(hist.Key())
	switch {
	case err != nil:
		return err
	case !bytes.HasPrefix(p.key, prefix), older == main, made:
		return nil // another key's, or the same revision's, whose turn was before
	}
	r, err := p.decode(hist, older)
	if err != nil || r.tombstone {
		return err
	}
	return p.delete(hist, older, r, len(key))
}

// delete deletes the version r of main that hist stands on.
func (p *passStep) delete(hist *pebble.Iterator, main int64, r *record, keyLen int) error {
	p.deleted++
	p.freed += recordSize(len(hist.Key()), p.size, keyLen)
	op := p.batch.DeleteDeferred(len(hist.Key()))
	copy(op.Key, hist.Key())
	if err := op.Finish(); err != nil {
		return err
	}
	return p.remove(revision{main, r.sub})
}

// remove takes a version out of the revision index.
func (p *passStep) remove(r revision) error {
	n, read, err := p.known.find(p.index, r)
	p.read += read
	if err != nil {
		return err
	}
	n.left--
	var b [revKeyLen]byte
	key := appendRevisionKey(b[:0], n.last.main, n.last.sub)
	if n.left > 0 {
		return p.batch.Merge(key, removal(r), nil)
	}
	return p.batch.Delete(key, nil)
}

// commit commits the batch, with what the compactor keeps of itself.
func (p *passStep) commit(last bool) error {
	s := p.c.s
	freed := s.freed.Load() + p.freed
	var b [8]byte
	if p.freed > 0 {
		binary.BigEndian.PutUint64(b[:], uint64(freed))
		if err := p.batch.Set(metaFreed, b[:], nil); err != nil {
			return err
		}
	}
	if last {
		binary.BigEndian.PutUint64(b[:], uint64(p.to))
		if err := p.batch.Set(metaFinished, b[:], nil); err != nil {
			return err
		}
	}
	if p.batch.Empty() {
		return nil
	}
	if err := s.eng.Commit(p.batch); err != nil {
		return err
	}
	s.freed.Store(freed)
	s.counters.compacted.Add(uint64(p.deleted))
	return nil
}
