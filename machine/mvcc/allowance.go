package mvcc

import (
	"encoding/binary"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// maxCommandBytes bounds the history that one command writes. It is written
// as one engine batch, which can hold 4 GiB, and a short command can ask for any
// amount: a deletion of many keys, or puts that keep large values. The bound is
// the same on all members and is compared with what a command writes at most,
// which depends on nothing but the command and the state: so all refuse the same
// commands, before anything of them is done.
const maxCommandBytes = 1 << 30

// allowance is what is left of the bound while the operations of a command are
// counted.
type allowance int64

// take counts the records of one version of key, and tells whether there was
// room for them. head bounds what precedes the value.
func (a *allowance) take(key string, head, value int) bool {
	*a -= allowance(recordSize(historyKeyLen(key)+subLen, head+value, len(key)))
	return *a >= 0
}

const tombstoneMax = 1 + binary.MaxVarintLen64

func (a *allowance) takeTombstone(key string) bool { return a.take(key, tombstoneMax, 0) }

// takeRange counts the deletion of the keys of a span.
func (a *allowance) takeRange(idx *root, sp span) error {
	sp.each(idx, func(it *item) bool { return a.takeTombstone(it.key) })
	return a.exceeded()
}

// takePut counts a put in a transaction. One that is deleted again by the same
// transaction moves aside: its value is then written twice, and a tombstone.
func (a *allowance) takePut(st *state, r *pb.PutRequest) error {
	key, value := aliasString(r.Key), len(r.Value)
	if r.IgnoreValue {
		kept, err := st.value(st.index.get(key)) // which checkPut has found
		if err != nil {
			fatal(err)
		}
		value = len(kept)
	}
	a.take(key, recordHeadMax, value)
	a.take(key, recordHeadMax, value)
	a.takeTombstone(key)
	return a.exceeded()
}

func (a *allowance) exceeded() error {
	if *a < 0 {
		return ErrTooLarge
	}
	return nil
}

// CheckDeleteKeys returns the error that refuses to delete the keys by one
// command, as a lease that ends does.
func (s *Store) CheckDeleteKeys(keys []string) error {
	left := s.commandBytes
	for _, key := range keys {
		if !left.takeTombstone(key) {
			break
		}
	}
	return left.exceeded()
}
