package mvcc

import "sync/atomic"

// counters count since Open.
type counters struct {
	puts, deletes, txns, ranges, compacted atomic.Uint64
}

// Stats are figures for metrics.
type Stats struct {
	// Keys is the number of keys as published.
	Keys int
	// Puts and Deletes count the keys put and deleted since Open, in
	// transactions too; Txns the transactions, read-only ones included; Ranges
	// the reads of ranges outside transactions; Compacted the versions that
	// compaction deleted.
	Puts, Deletes, Txns, Ranges, Compacted uint64
}

// Stats returns the current figures.
func (s *Store) Stats() Stats {
	return Stats{
		Keys:      s.view.Load().index.size,
		Puts:      s.counters.puts.Load(),
		Deletes:   s.counters.deletes.Load(),
		Txns:      s.counters.txns.Load(),
		Ranges:    s.counters.ranges.Load(),
		Compacted: s.counters.compacted.Load(),
	}
}
