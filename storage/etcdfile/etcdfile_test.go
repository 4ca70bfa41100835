package etcdfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// What a good file looks like to etcd is tested with etcdutl and etcd
// themselves, in the tests module. Here is what happens when it cannot be made.

func TestNothingIsLeftOfAFileThatFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	broken := errors.New("history ends here")
	err := Write(context.Background(), path, Contents{
		Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			for rev := range int64(changesPerTx + 10) {
				if err := fn(rev+2, 0, false, &mvccpb.KeyValue{Key: []byte("k")}); err != nil {
					return err
				}
			}
			return broken
		},
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file is still there: %v", err)
	}
}

// When the state cannot be written there are no buckets for the changes.
func TestAStateThatCannotBeWrittenEndsTheWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	err := Write(context.Background(), path, Contents{
		Users: []*authpb.User{{Name: nil}}, // bbolt takes no empty key
		Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			return fn(2, 0, false, &mvccpb.KeyValue{Key: []byte("k")})
		},
	})
	if err == nil {
		t.Fatal("it was written")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the file is still there: %v", err)
	}
}

func TestAnEndedContextStopsTheWriting(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	path := filepath.Join(t.TempDir(), "snapshot")
	n := 0
	err := Write(ctx, path, Contents{
		Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			for {
				if n++; n == 5 {
					cancel()
				}
				if err := fn(int64(n)+1, 0, false, &mvccpb.KeyValue{Key: []byte("k")}); err != nil {
					return err
				}
			}
		},
	})
	if !errors.Is(err, context.Canceled) || n > 2*changesPerTx {
		t.Fatalf("after %d changes: %v", n, err)
	}
}

func TestAFileInTheWayIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(context.Background(), path, Contents{}); err == nil {
		t.Fatal("a file was overwritten")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("the file holds %q, %v", b, err)
	}
}

func TestRemovedMembersAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	err := Write(context.Background(), path, Contents{
		RemovedMembers: []uint64{6, 0xabc},
		Revisions: func(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		for _, key := range []string{"6", "abc"} {
			if v := tx.Bucket(bucketMembersRemoved).Get([]byte(key)); string(v) != "removed" {
				t.Errorf("%s is %q", key, v)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a snapshot file is written with is bounded in bytes too: large values are not all held
// in memory.
func TestWritingHoldsFewValuesInMemory(t *testing.T) {
	const changes, valueBytes = 400, 1 << 20
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before, most := heap(), int64(0)
	value := bytes.Repeat([]byte("v"), valueBytes) // one and the same: what is retained is retained by Write
	err := WriteDatabase(t.Context(), filepath.Join(t.TempDir(), "db"), Contents{Revisions: func(fn RevisionFunc) error {
		for i := range int64(changes) {
			if err := fn(i+2, 0, false, &mvccpb.KeyValue{Key: fmt.Appendf(nil, "k%d", i), CreateRevision: i + 2, ModRevision: i + 2, Version: 1, Value: value}); err != nil {
				return err
			}
			if i%50 == 49 {
				most = max(most, heap()-before)
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if most > 100<<20 {
		t.Errorf("writing %d changes of 1 MiB holds %d MiB in memory at once", changes, most>>20)
	}
}

// metaPage makes a meta page.
func metaPage(b []byte, pageSize, root, pages, txid uint64) {
	le := binary.LittleEndian
	le.PutUint16(b[8:], pageMeta)
	p := b[pageHeaderLen:]
	le.PutUint32(p, metaMagic)
	le.PutUint32(p[4:], metaVersion)
	le.PutUint32(p[8:], uint32(pageSize))
	le.PutUint64(p[16:], root)
	le.PutUint64(p[40:], pages)
	le.PutUint64(p[48:], txid)
	h := fnv.New64a()
	h.Write(p[:metaLen-8])
	le.PutUint64(p[metaLen-8:], h.Sum64())
}

// A tree whose branches lead again and again to one empty leaf with a long
// overflow is damaged: its keys do not tell that it is met again, for it
// has none.
func TestEmptyLeafIsNotReadOverAndOver(t *testing.T) {
	const pageSize, elements = 1024, 4000
	le := binary.LittleEndian
	branchPages := uint64((pageHeaderLen+elements*branchElemLen)/pageSize + 1)
	leafPages := uint64(1024)
	branch, leaf := uint64(2), 2+branchPages
	pages := leaf + leafPages
	b := make([]byte, pages*pageSize)
	metaPage(b, pageSize, branch, pages, 1)
	metaPage(b[pageSize:], pageSize, branch, pages, 2)
	p := b[branch*pageSize:]
	le.PutUint64(p, branch)
	le.PutUint16(p[8:], pageBranch)
	le.PutUint16(p[10:], elements)
	le.PutUint32(p[12:], uint32(branchPages-1))
	for i := range elements {
		le.PutUint64(p[pageHeaderLen+i*branchElemLen+8:], leaf)
	}
	p = b[leaf*pageSize:]
	le.PutUint64(p, leaf)
	le.PutUint16(p[8:], pageLeaf)
	le.PutUint32(p[12:], uint32(leafPages-1))
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, ReadOptions{Unverified: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := int64(0)
	f.tree.onRead = func(n int64) { read += n }
	if _, err = f.Status(t.Context()); err == nil || read > 3*int64(len(b)) {
		t.Errorf("a file of %d bytes: %d bytes were read (%v)", len(b), read, err)
	}
}
