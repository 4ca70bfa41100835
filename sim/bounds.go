package sim

import (
	"path"
	"strings"
	"time"

	"github.com/coteriedb/coterie/replica"
)

// What members may hold at most, by what was asked of them. Of docs/design.md's bounds
// most are far beyond what a run reaches; what can be seen is that nothing stays.
const (
	revocations   = 32 // of expired leases under way, as members are configured
	boundInterval = 25 * time.Millisecond
)

// watchBounds looks again and again at what members hold.
func (w *world) watchBounds() {
	for _, m := range w.inOrder() {
		if m.p == nil || !m.p.alive() {
			continue
		}
		// A client waits for one command, and may have given one up that is not ended yet; each may be a
		// renewal, whose command is the lease clock's.
		most := 2*len(w.clients) + revocations + 1 + w.changesAsked
		if held := m.p.node.Status().Pending; held > most {
			w.fail("member %d holds %d proposals, and clients and its lease clock cannot have made more than %d", m.id, held, most)
		}
	}
	w.after(boundInterval, w.watchBounds)
}

// checkRest looks at what members hold when nothing has been asked of them for a while.
func (w *world) checkRest() {
	for _, m := range w.staying() {
		if m.p == nil {
			return // which is looked at elsewhere
		}
		if err := m.p.replica.StartFlush(); err != nil {
			w.fail("member %d does not flush: %v", m.id, err)
		}
	}
	w.run(time.Second)
	for _, m := range w.staying() {
		if m.p != nil && w.failed == "" {
			m.checkFiles(m.checkLog())
			m.checkStreams()
		}
	}
}

// checkLog checks that the log was cut: when nobody lags, and all is durable, it holds
// the entries that are kept in any case. It returns how many.
func (m *member) checkLog() uint64 {
	log := m.p.data.Log
	first, err := log.FirstIndex()
	if err != nil {
		m.w.fail("member %d: %v", m.id, err)
	}
	last, err := log.LastIndex()
	if err != nil {
		m.w.fail("member %d: %v", m.id, err)
	}
	const since = 5 // entries that may have come with or after the flush
	held, most := last+1-first, m.w.plan.KeepEntries+since
	if held > most {
		m.w.fail("the log of member %d holds %d entries, not %d at most", m.id, held, most)
	}
	return held
}

// checkFiles checks that nothing is on the disk that nobody needs, for a log of so many entries.
func (m *member) checkFiles(entries uint64) {
	logs, engines := uint64(0), map[string]bool{}
	for _, name := range m.disk.Files() {
		top, _, below := strings.Cut(strings.TrimPrefix(name, "/data/"), "/")
		switch {
		case path.Ext(name) == ".wal":
			logs++
		case below && strings.HasPrefix(top, replica.EngineDir):
			engines[top] = true
		case below && top != replica.LogDir:
			m.w.fail("member %d has left %s", m.id, name)
		}
	}
	if len(engines) != 1 {
		m.w.fail("member %d has the files of %d engines", m.id, len(engines))
	}
	if most := entries + 3; logs > most {
		m.w.fail("member %d has %d files of log, for %d entries", m.id, logs, entries)
	}
}

// checkStreams checks that no stream is there that nobody reads, and no event that waits.
func (m *member) checkStreams() {
	readers := 0
	for _, x := range m.w.watchers {
		if x.p == m.p {
			readers++
		}
	}
	if st := m.p.replica.Machine().Watch.Stats(); st.Streams > readers || st.Watchers > readers {
		m.w.fail("member %d has %d streams and %d watchers, for %d readers", m.id, st.Streams, st.Watchers, readers)
	} else if st.Pending > 0 || st.Lagging > 0 {
		m.w.fail("member %d has %d events and %d watchers that wait, and nothing has happened for long", m.id, st.Pending, st.Lagging)
	}
}

// under counts what is under way of one kind.
func (p *process) under(kind string, most int) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.counts == nil {
		p.counts = map[string]int{}
	}
	if p.counts[kind]++; p.counts[kind] > most {
		p.m.w.truth.fail("member %d has %d %s under way, not %d at most", p.m.id, p.counts[kind], kind, most)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.counts[kind]--
	}
}
