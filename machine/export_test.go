package machine

import (
	"bytes"
	"crypto/sha256"
	"os"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// countExported checks a snapshot file's sum and counts what is in it.
func countExported(t *testing.T, path string) (leases, keys int) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	content, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(content); !bytes.Equal(sum, want[:]) {
		t.Fatal("the sum at the end of the file is wrong")
	}
	must(t, os.WriteFile(path, content, 0o600))
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	must(t, err)
	must(t, db.View(func(tx *bolt.Tx) error {
		leases = tx.Bucket([]byte("lease")).Stats().KeyN
		keys = tx.Bucket([]byte("key")).Stats().KeyN
		return nil
	}))
	must(t, db.Close())
	return leases, keys
}
