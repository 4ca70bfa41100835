package etcdfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
