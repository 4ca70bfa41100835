package etcdfile

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// sectorBytes divides the size of every database: what is left of a file's
// size tells whether a checksum follows it.
const sectorBytes = 512

// ErrNoChecksum refuses a snapshot file that does not end with a checksum.
var ErrNoChecksum = errors.New("the file has no checksum at its end, so it was cut short, or it is not a snapshot but was copied from a data directory")

// ErrInUse refuses the database of an etcd that runs.
var ErrInUse = errors.New("the file is in use by etcd: stop it first")

// ReadOptions configures Open.
type ReadOptions struct {
	// Unverified reads a file without comparing it with the checksum that a
	// snapshot file has at its end. The database of a data directory has none.
	Unverified bool
	// OnProgress, if set, is told of how many bytes have been read of how many.
	OnProgress func(done, total int64)
}

// File is a file of etcd's, open for reading: a snapshot, or the database of a
// data directory. Its methods belong to one goroutine.
type File struct {
	f    *os.File
	tree *tree
	done int64
	o    ReadOptions
}

// Open opens a file and changes nothing. It is locked, so that no etcd starts on
// it meanwhile.
func Open(ctx context.Context, path string, o ReadOptions) (_ *File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close()) // which gives the lock back
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", path)
	}
	if err := lockShared(f); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	size := info.Size()
	if size%sectorBytes == sha256.Size {
		size -= sha256.Size
		if !o.Unverified {
			if err := verify(ctx, f, size); err != nil {
				return nil, err
			}
		}
	} else if !o.Unverified {
		return nil, fmt.Errorf("%s: %w", path, ErrNoChecksum)
	}
	t, err := openTree(path, f, size)
	if err != nil {
		return nil, err
	}
	file := &File{f: f, tree: t, o: o}
	t.onRead = file.progress
	return file, nil
}

// Close closes the file and gives the lock back.
func (f *File) Close() error { return f.f.Close() }

func (f *File) progress(n int64) {
	f.done += n
	if f.o.OnProgress != nil {
		f.o.OnProgress(min(f.done, f.tree.size()), f.tree.size())
	}
}

// verify compares the first size bytes with the checksum behind them.
func verify(ctx context.Context, f *os.File, size int64) error {
	h := sha256.New()
	r := io.NewSectionReader(f, 0, size)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := io.CopyN(h, r, 4<<20)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Name(), err)
		}
	}
	want := make([]byte, sha256.Size)
	if _, err := f.ReadAt(want, size); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if got := h.Sum(nil); !slices.Equal(got, want) {
		return &DamageError{Path: f.Name(), Reason: fmt.Sprintf("its SHA-256 is %x, and the one at its end is %x", got, want)}
	}
	return nil
}

// Contents reads everything but the changes of keys, which its Revisions reads
// while the file is open.
func (f *File) Contents(ctx context.Context) (*Contents, error) {
	c := &Contents{ScheduledCompaction: -1, FinishedCompaction: -1, AuthRevision: 1}
	for _, b := range []struct {
		name []byte
		read func(c *Contents, key, value []byte) error
	}{
		{bucketMeta, readMetaField},
		{bucketLease, readLease},
		{bucketAlarm, readAlarm},
		{bucketMembers, readMember},
		{bucketMembersRemoved, readRemovedMember},
		{bucketCluster, readClusterField},
		{bucketAuth, readAuthField},
		{bucketAuthUsers, readUser},
		{bucketAuthRoles, readRole},
	} {
		if err := f.tree.eachIn(b.name, func(key, value []byte) error {
			if err := b.read(c, key, value); err != nil {
				return f.tree.damaged("bucket %q, key %q: %v", b.name, key, err)
			}
			return ctx.Err()
		}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(c.Members, func(x, y Member) int { return compareIDs(x.ID, y.ID) })
	slices.SortFunc(c.RemovedMembers, compareIDs)
	c.Revisions = func(fn RevisionFunc) error { return f.revisions(ctx, fn) }
	return c, nil
}

func compareIDs(x, y uint64) int {
	switch {
	case x < y:
		return -1
	case x > y:
		return 1
	}
	return 0
}

func (f *File) revisions(ctx context.Context, fn RevisionFunc) error {
	f.done = 0
	return f.tree.eachIn(bucketKey, func(key, value []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		main, sub, tombstone, err := splitRevisionKey(key)
		if err != nil {
			return f.tree.damaged("%v", err)
		}
		kv := &mvccpb.KeyValue{}
		if err := proto.Unmarshal(value, kv); err != nil {
			return f.tree.damaged("the change of revision %d/%d: %v", main, sub, err)
		}
		return fn(main, sub, tombstone, kv)
	})
}

// splitRevisionKey is the inverse of revisionKey.
func splitRevisionKey(k []byte) (main, sub int64, tombstone bool, err error) {
	tombstone = len(k) == 18 && k[17] == 't'
	if len(k) != 17 && !tombstone || k[8] != '_' {
		return 0, 0, false, fmt.Errorf("%x is not the key of a revision", k)
	}
	main, sub = int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:]))
	if main < 1 || sub < 0 {
		return 0, 0, false, fmt.Errorf("%x is the key of revision %d/%d, which cannot be", k, main, sub)
	}
	return main, sub, tombstone, nil
}

func readMetaField(c *Contents, key, value []byte) (err error) {
	switch string(key) {
	case "consistent_index":
		c.Index, err = readUint64(value)
	case "term":
		c.Term, err = readUint64(value)
	case "storageVersion":
		c.StorageVersion = string(value)
	case "scheduledCompactRev":
		c.ScheduledCompaction, _, _, err = splitCompaction(value)
	case "finishedCompactRev":
		c.FinishedCompaction, _, _, err = splitCompaction(value)
	}
	return err // confState repeats what the members say
}

// splitCompaction reads the revision of a compaction, which may be 0.
func splitCompaction(v []byte) (main, sub int64, tombstone bool, err error) {
	if len(v) == 17 && v[8] == '_' && binary.BigEndian.Uint64(v) == 0 {
		return 0, 0, false, nil
	}
	return splitRevisionKey(v)
}

func readUint64(v []byte) (uint64, error) {
	if len(v) != 8 {
		return 0, fmt.Errorf("%d bytes instead of 8", len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

func readLease(c *Contents, key, value []byte) error {
	l := Lease{}
	for v := value; len(v) > 0; {
		number, kind, n := protowire.ConsumeTag(v)
		if n < 0 {
			return protowire.ParseError(n)
		}
		v = v[n:]
		if kind != protowire.VarintType {
			if n = protowire.ConsumeFieldValue(number, kind, v); n < 0 {
				return protowire.ParseError(n)
			}
			v = v[n:]
			continue
		}
		x, n := protowire.ConsumeVarint(v)
		if n < 0 {
			return protowire.ParseError(n)
		}
		v = v[n:]
		switch number {
		case 1:
			l.ID = int64(x)
		case 2:
			l.TTL = int64(x)
		case 3:
			l.RemainingTTL = int64(x)
		}
	}
	if id, err := readUint64(key); err != nil || int64(id) != l.ID || id == 0 {
		return fmt.Errorf("it is of lease %016x", uint64(l.ID))
	}
	c.Leases = append(c.Leases, l)
	return nil
}

func readAlarm(c *Contents, key, _ []byte) error {
	a := &pb.AlarmMember{}
	if err := proto.Unmarshal(key, a); err != nil {
		return err
	}
	c.Alarms = append(c.Alarms, a)
	return nil
}

func readMember(c *Contents, key, value []byte) error {
	id, err := strconv.ParseUint(string(key), 16, 64)
	if err != nil {
		return err
	}
	m := Member{}
	if err := json.Unmarshal(value, &m); err != nil {
		return err
	}
	if m.ID != id {
		return fmt.Errorf("it is of member %x", m.ID)
	}
	c.Members = append(c.Members, m)
	return nil
}

func readRemovedMember(c *Contents, key, _ []byte) error {
	id, err := strconv.ParseUint(string(key), 16, 64)
	c.RemovedMembers = append(c.RemovedMembers, id)
	return err
}

func readClusterField(c *Contents, key, value []byte) error {
	if string(key) == "clusterVersion" {
		c.ClusterVersion = string(value)
	}
	return nil
}

func readAuthField(c *Contents, key, value []byte) (err error) {
	switch string(key) {
	case "authEnabled":
		c.AuthEnabled = len(value) == 1 && value[0] == 1
	case "authRevision":
		// etcd writes 0 there before the first change.
		c.AuthRevision, err = readUint64(value)
		c.AuthRevision = max(c.AuthRevision, 1)
	}
	return err
}

func readUser(c *Contents, key, value []byte) error {
	u := &authpb.User{}
	if err := proto.Unmarshal(value, u); err != nil {
		return err
	}
	if string(u.Name) != string(key) {
		return fmt.Errorf("it is of user %q", u.Name)
	}
	c.Users = append(c.Users, u)
	return nil
}

func readRole(c *Contents, key, value []byte) error {
	r := &authpb.Role{}
	if err := proto.Unmarshal(value, r); err != nil {
		return err
	}
	if string(r.Name) != string(key) {
		return fmt.Errorf("it is of role %q", r.Name)
	}
	c.Roles = append(c.Roles, r)
	return nil
}

// Status is what etcdutl tells of a file.
type Status struct {
	// Hash is the CRC-32C of the names of all buckets, each with all that it has.
	Hash     uint32
	Revision int64 // of the last change
	Keys     int   // that are alive
	Size     int64 // of the database, in bytes
	Version  string
}

// Status reads all of the file.
func (f *File) Status(ctx context.Context) (*Status, error) {
	s := &Status{Size: f.tree.size()}
	sum := newCRC()
	alive := make(map[string]struct{})
	f.done = 0
	err := f.tree.each(f.tree.root, func(name, record []byte, bucket bool) error {
		if !bucket {
			return f.tree.damaged("%q is not a bucket", name)
		}
		sum.Write(name)
		isKey, isMeta := string(name) == string(bucketKey), string(name) == string(bucketMeta)
		return f.tree.eachOf(record, func(key, value []byte, _ bool) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			sum.Write(key)
			sum.Write(value)
			switch {
			case isMeta && string(key) == "storageVersion":
				s.Version = string(value)
			case isKey:
				return f.count(s, alive, key, value)
			}
			return nil
		})
	})
	s.Hash, s.Keys = sum.Sum32(), len(alive)
	return s, err
}

func newCRC() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// count takes one change into account.
func (f *File) count(s *Status, alive map[string]struct{}, key, value []byte) error {
	main, _, tombstone, err := splitRevisionKey(key)
	if err != nil {
		return f.tree.damaged("%v", err)
	}
	kv := &mvccpb.KeyValue{}
	if err := proto.Unmarshal(value, kv); err != nil {
		return f.tree.damaged("the change of revision %d: %v", main, err)
	}
	s.Revision = main
	if tombstone {
		delete(alive, string(kv.Key))
	} else {
		alive[string(kv.Key)] = struct{}{}
	}
	return nil
}

// CheckVersion refuses what a newer etcd has written than the one whose format
// is known here. Only the first two numbers of a version tell formats apart; a
// file of etcd 3.5 has none.
func (c *Contents) CheckVersion(known string) error {
	newest, err := minor(known)
	if err != nil {
		return err
	}
	for _, v := range []string{c.StorageVersion, c.ClusterVersion} {
		if v == "" {
			continue
		}
		n, err := minor(v)
		if err != nil {
			return err
		}
		if n > newest {
			return fmt.Errorf("it is of version %s of etcd, and this binary reads up to %s: use a newer version of Coterie", v, known)
		}
	}
	return nil
}

// minor returns 3007 for "3.7.1".
func minor(version string) (int, error) {
	parts := strings.Split(version, ".")
	if len(parts) < 2 {
		return 0, fmt.Errorf("%q is not the version of an etcd", version)
	}
	major, err := strconv.ParseUint(parts[0], 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not the version of an etcd", version)
	}
	n, err := strconv.ParseUint(parts[1], 10, 8)
	if err != nil {
		return 0, fmt.Errorf("%q is not the version of an etcd", version)
	}
	return int(major)*1000 + int(n), nil
}
