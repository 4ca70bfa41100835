// Package etcdfile writes and reads snapshot files in etcd's format: a bbolt
// database with etcd's buckets, followed by its SHA-256. etcdutl reads and
// restores what it writes, and etcd starts on the result.
//
// Reading changes nothing, and a damaged file gives an error, whatever is in it:
// the pages are read here and not by bbolt, which maps the file into memory and
// ends the process when it meets what it does not expect.
//
// It knows the layout of etcd 3.5's to 3.7's file and nothing of where the
// contents come from or go to.
package etcdfile

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Lease is a lease as etcd's file has it.
type Lease struct{ ID, TTL, RemainingTTL int64 }

// Member is a member as etcd's file has it.
type Member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Contents is what goes into a file: the state at one applied index.
type Contents struct {
	Index, Term    uint64
	StorageVersion string // of the layout, such as "3.7.0"
	ClusterVersion string
	// ScheduledCompaction is the revision compacted to, and FinishedCompaction
	// the one to which that is done; etcd does the rest when it starts. Values
	// below 1 mean that there was none.
	ScheduledCompaction, FinishedCompaction int64
	Leases                                  []Lease
	Alarms                                  []*pb.AlarmMember
	Members                                 []Member
	RemovedMembers                          []uint64 // IDs
	AuthEnabled                             bool
	AuthRevision                            uint64
	Users                                   []*authpb.User
	Roles                                   []*authpb.Role
	// Revisions calls fn for all retained changes in the order of their
	// revisions.
	Revisions func(fn RevisionFunc) error
}

// RevisionFunc is called with one change of a key. The pair of a tombstone has
// the key alone.
type RevisionFunc = func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error

// Names of etcd's buckets and of the fields in them.
var (
	bucketKey            = []byte("key")
	bucketMeta           = []byte("meta")
	bucketLease          = []byte("lease")
	bucketAlarm          = []byte("alarm")
	bucketCluster        = []byte("cluster")
	bucketMembers        = []byte("members")
	bucketMembersRemoved = []byte("members_removed")
	bucketAuth           = []byte("auth")
	bucketAuthUsers      = []byte("authUsers")
	bucketAuthRoles      = []byte("authRoles")

	buckets = [][]byte{bucketKey, bucketMeta, bucketLease, bucketAlarm, bucketCluster, bucketMembers,
		bucketMembersRemoved, bucketAuth, bucketAuthUsers, bucketAuthRoles}
)

// A bbolt transaction holds what it writes in memory. These bound it.
const (
	changesPerTx = 10_000
	bytesPerTx   = 16 << 20 // and one change
)

// Write makes a snapshot file at path, which must not exist. On an error nothing
// is left there.
func Write(ctx context.Context, path string, c Contents) error {
	return write(ctx, path, &c, appendChecksum)
}

// WriteDatabase makes the database of a data directory of etcd's. It is a
// snapshot file without the checksum.
func WriteDatabase(ctx context.Context, path string, c Contents) error {
	return write(ctx, path, &c, func(string) error { return nil })
}

func write(ctx context.Context, path string, c *Contents, finish func(path string) error) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("write snapshot file: %s is in the way", path), err)
	}
	err := writeBolt(ctx, path, c)
	if err == nil {
		err = finish(path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot file: %w", err), removeIfThere(path))
	}
	return nil
}

func writeBolt(ctx context.Context, path string, c *Contents) error {
	// The file is synced once, at the end. Nothing else can hold its lock: the
	// timeout only turns a surprise into an error.
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true, NoGrowSync: true, NoFreelistSync: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	if err := writeState(db, c); err != nil {
		return errors.Join(err, db.Close())
	}
	if err := writeChanges(ctx, db, c); err != nil {
		return errors.Join(err, db.Close())
	}
	return errors.Join(db.Sync(), db.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// writeState writes everything but the keys.
func writeState(db *bolt.DB, c *Contents) error {
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range buckets {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return errors.Join(
			writeMeta(tx.Bucket(bucketMeta), c),
			writeLeases(tx.Bucket(bucketLease), c.Leases),
			writeAlarms(tx.Bucket(bucketAlarm), c.Alarms),
			writeMembers(tx.Bucket(bucketMembers), c.Members),
			writeRemovedMembers(tx.Bucket(bucketMembersRemoved), c.RemovedMembers),
			tx.Bucket(bucketCluster).Put([]byte("clusterVersion"), []byte(c.ClusterVersion)),
			writeAuth(tx, c),
		)
	})
}

func writeMeta(b *bolt.Bucket, c *Contents) error {
	var voters, learners []uint64
	for _, m := range c.Members {
		if m.IsLearner {
			learners = append(learners, m.ID)
		} else {
			voters = append(voters, m.ID)
		}
	}
	confState, err := json.Marshal(struct {
		Voters    []uint64 `json:"voters,omitempty"`
		Learners  []uint64 `json:"learners,omitempty"`
		AutoLeave bool     `json:"auto_leave"`
	}{voters, learners, false})
	if err != nil {
		return err
	}
	errs := []error{
		b.Put([]byte("consistent_index"), binary.BigEndian.AppendUint64(nil, c.Index)),
		b.Put([]byte("term"), binary.BigEndian.AppendUint64(nil, c.Term)),
		b.Put([]byte("confState"), confState),
		b.Put([]byte("storageVersion"), []byte(c.StorageVersion)),
	}
	if c.ScheduledCompaction > 0 {
		errs = append(errs, b.Put([]byte("scheduledCompactRev"), revisionKey(c.ScheduledCompaction, 0, false)))
	}
	if c.FinishedCompaction > 0 {
		errs = append(errs, b.Put([]byte("finishedCompactRev"), revisionKey(c.FinishedCompaction, 0, false)))
	}
	return errors.Join(errs...)
}

func writeLeases(b *bolt.Bucket, leases []Lease) error {
	for _, l := range leases {
		// message Lease { int64 ID = 1; int64 TTL = 2; int64 RemainingTTL = 3; }
		var v []byte
		for i, field := range []int64{l.ID, l.TTL, l.RemainingTTL} {
			if field != 0 {
				v = protowire.AppendTag(v, protowire.Number(i+1), protowire.VarintType)
				v = protowire.AppendVarint(v, uint64(field))
			}
		}
		if err := b.Put(binary.BigEndian.AppendUint64(nil, uint64(l.ID)), v); err != nil {
			return err
		}
	}
	return nil
}

func writeAlarms(b *bolt.Bucket, alarms []*pb.AlarmMember) error {
	for _, a := range alarms {
		k, err := proto.Marshal(a)
		if err != nil {
			return err
		}
		if err := b.Put(k, nil); err != nil {
			return err
		}
	}
	return nil
}

func writeMembers(b *bolt.Bucket, members []Member) error {
	for _, m := range members {
		v, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if err := b.Put(memberKey(m.ID), v); err != nil {
			return err
		}
	}
	return nil
}

func writeRemovedMembers(b *bolt.Bucket, ids []uint64) error {
	for _, id := range ids {
		if err := b.Put(memberKey(id), []byte("removed")); err != nil {
			return err
		}
	}
	return nil
}

func memberKey(id uint64) []byte { return fmt.Appendf(nil, "%x", id) }

func writeAuth(tx *bolt.Tx, c *Contents) error {
	enabled := []byte{0}
	if c.AuthEnabled {
		enabled[0] = 1
	}
	b := tx.Bucket(bucketAuth)
	if err := errors.Join(
		b.Put([]byte("authEnabled"), enabled),
		b.Put([]byte("authRevision"), binary.BigEndian.AppendUint64(nil, c.AuthRevision)),
	); err != nil {
		return err
	}
	for _, u := range c.Users {
		if err := putMessage(tx.Bucket(bucketAuthUsers), u.Name, u); err != nil {
			return err
		}
	}
	for _, r := range c.Roles {
		if err := putMessage(tx.Bucket(bucketAuthRoles), r.Name, r); err != nil {
			return err
		}
	}
	return nil
}

func putMessage(b *bolt.Bucket, key []byte, m proto.Message) error {
	v, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return b.Put(key, v)
}

// writeChanges writes the key bucket. The keys come in ascending order, so its
// pages are filled to the brim.
func writeChanges(ctx context.Context, db *bolt.DB, c *Contents) error {
	var (
		tx       *bolt.Tx
		b        *bolt.Bucket
		n, bytes int // in tx
	)
	commit := func() error {
		if tx == nil {
			return nil
		}
		t := tx
		tx = nil
		return t.Commit()
	}
	err := c.Revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		if tx == nil {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			if tx, err = db.Begin(true); err != nil {
				return err
			}
			b = tx.Bucket(bucketKey)
			b.FillPercent = 1
			n, bytes = 0, 0
		}
		v, err := proto.Marshal(kv)
		if err != nil {
			return err
		}
		if err := b.Put(revisionKey(main, sub, tombstone), v); err != nil {
			return err
		}
		n++
		bytes += len(v)
		if n >= changesPerTx || bytes >= bytesPerTx {
			return commit()
		}
		return nil
	})
	if err != nil {
		if tx != nil {
			err = errors.Join(err, tx.Rollback())
		}
		return err
	}
	return commit()
}

// revisionKey is etcd's key of a change: main, '_', sub, and 't' for a deletion.
func revisionKey(main, sub int64, tombstone bool) []byte {
	k := binary.BigEndian.AppendUint64(make([]byte, 0, 18), uint64(main))
	k = append(k, '_')
	k = binary.BigEndian.AppendUint64(k, uint64(sub))
	if tombstone {
		k = append(k, 't')
	}
	return k
}

// appendChecksum adds the SHA-256 of the file to its end.
func appendChecksum(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return errors.Join(err, f.Close())
	}
	if _, err := f.Write(h.Sum(nil)); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}
