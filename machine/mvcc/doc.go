// Package mvcc is the multi-version key space of the state machine: every
// modification gets a revision, old revisions stay readable until they are
// compacted, and clients see exactly what etcd's v3 KV shows them.
//
// It owns the index (live keys, in memory), the history (all retained
// versions, in the engine), transactions, compaction and the hash of the
// history. docs/format-mvcc.md describes what it stores byte by byte.
//
// Writes come from one goroutine, the one that applies committed commands, and
// are gathered in an engine batch between Begin and Publish; no reader sees
// any of them before Publish, which shows them all by one atomic store. Reads
// come from any goroutine, take no lock, and never wait for writes.
// A read finishes on the revision at which it began: physical compaction, which
// runs on a goroutine of the Store, never takes away a version that a read in
// progress can still name without that read noticing and starting over.
//
// The result of a command depends on the commands before it and on nothing
// else: no clock, no randomness, no map order.
//
// The package knows nothing of raft, of connections, of clocks that expire
// leases, or of who watches. Requests are expected to have passed the static
// checks of the API (keys not empty, no key written twice in a transaction).
package mvcc
