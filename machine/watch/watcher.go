package watch

import (
	"bytes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Why a watcher is refused, in etcd's words.
const (
	reasonEmptyRange  = "mvcc: watcher range is empty"
	reasonDuplicateID = "mvcc: duplicate watch ID provided on the WatchStream"
)

// state is where a watcher's events come from.
type state uint8

const (
	// synced: from the distributor, through Hub.synced.
	synced state = iota
	// lagging: from the ring or the history, read by Next through Stream.lag.
	lagging
	// compacted: from nowhere, what it needs is gone. Its id stays taken
	// until the client cancels it, as in etcd.
	compacted
	// canceled: from nowhere, and its id is free.
	canceled
)

// watcher is one watcher of a stream. There can be very many; keep it small.
type watcher struct {
	s        *Stream
	key, end string
	id       int64
	// cohort is that of the index that the watcher is in, nil if it is in none,
	// and pos where in its members it is. Guarded by what guards the index.
	cohort *cohort
	pos    int32
	// next is the first revision that the watcher has not been given. While
	// it is synced that is only a lower bound, for the distributor gives it
	// everything from there on. Guarded by Hub.mu while synced, by Stream.mu
	// while lagging; to become synced it takes both.
	next  int64
	flags flags
	// state changes with Stream.mu held, from and to synced with Hub.mu too.
	state state
	// elide leaves out the next progress notification, because events were
	// sent since the last. Guarded by Stream.mu.
	elide bool
	// round is the round of Stream.catchUp that the watcher takes part in.
	// Guarded by Stream.mu.
	round uint32
	// slot is where in Stream.batch the body of the last responses is whose
	// list begins with the watcher, if it is there. Guarded by Stream.mu.
	slot int32
}

func (w *watcher) is(f flags) bool { return w.flags&f != 0 }

func (w *watcher) rangeOf() span {
	return span{begin: w.key, end: bound{key: w.end, endless: w.is(endless)}}
}

// newWatcher translates a request, with etcd's conventions: no key is the
// smallest key, no range end the key alone, the range end "\x00" all keys from
// the key on.
func newWatcher(s *Stream, r *pb.WatchCreateRequest) (w *watcher, refusal string) {
	w = &watcher{s: s, key: string(r.Key), id: r.WatchId}
	if len(r.Key) == 0 {
		w.key = "\x00"
	}
	switch {
	case len(r.RangeEnd) == 0:
	case bytes.Equal(r.RangeEnd, []byte{0}):
		w.flags |= ranged | endless
	case w.key >= string(r.RangeEnd):
		return nil, reasonEmptyRange
	default:
		w.flags |= ranged
		w.end = string(r.RangeEnd)
	}
	for _, f := range r.Filters {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			w.flags |= noPut
		case pb.WatchCreateRequest_NODELETE:
			w.flags |= noDelete
		}
	}
	for _, o := range []struct {
		asked bool
		flag  flags
	}{{r.PrevKv, prevKV}, {r.Fragment, fragment}, {r.ProgressNotify, notify}} {
		if o.asked {
			w.flags |= o.flag
		}
	}
	return w, ""
}
