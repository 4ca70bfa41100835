package etcdfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// change is one change of a key, as Revisions gives it.
type change struct {
	main, sub int64
	tombstone bool
	kv        *mvccpb.KeyValue
}

// sample is a state of every kind, with changes enough for a tree of several
// levels and one value of several pages.
func sample(changes int) (Contents, []change) {
	var all []change
	for i := range changes {
		c := change{main: int64(i/2 + 2), sub: int64(i % 2), tombstone: i%7 == 3, kv: &mvccpb.KeyValue{Key: fmt.Appendf(nil, "key %d", i%50)}}
		if !c.tombstone {
			c.kv.CreateRevision, c.kv.ModRevision, c.kv.Version = 2, c.main, 1
			c.kv.Value = bytes.Repeat([]byte{byte(i)}, 100)
		}
		if i == changes/2 {
			c.kv.Value = bytes.Repeat([]byte("long"), 10_000)
		}
		all = append(all, c)
	}
	return Contents{
		Index: 77, Term: 5, StorageVersion: "3.7.0", ClusterVersion: "3.7.0", ScheduledCompaction: 9, FinishedCompaction: 7,
		Leases:         []Lease{{ID: 7, TTL: 60, RemainingTTL: 30}, {ID: -3, TTL: 5}},
		Alarms:         []*pb.AlarmMember{{MemberID: 0xabc, Alarm: pb.AlarmType_NOSPACE}},
		Members:        []Member{{ID: 5, PeerURLs: []string{"http://a"}, Name: "a", ClientURLs: []string{"http://c"}}, {ID: 0xfedcba9876543210, PeerURLs: []string{"http://b"}, IsLearner: true}},
		RemovedMembers: []uint64{3, 9},
		AuthEnabled:    true, AuthRevision: 8,
		Users: []*authpb.User{{Name: []byte("u"), Password: []byte("hash"), Roles: []string{"r"}}},
		Roles: []*authpb.Role{{Name: []byte("r"), KeyPermission: []*authpb.Permission{{Key: []byte("k"), RangeEnd: []byte("l")}}}},
		Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
			for _, c := range all {
				if err := fn(c.main, c.sub, c.tombstone, c.kv); err != nil {
					return err
				}
			}
			return nil
		},
	}, all
}

func write1(t testing.TB, changes int) (path string, c Contents, all []change) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "snapshot")
	c, all = sample(changes)
	if err := Write(t.Context(), path, c); err != nil {
		t.Fatal(err)
	}
	return path, c, all
}

func TestWhatWasWrittenIsRead(t *testing.T) {
	for _, changes := range []int{0, 1, 3, 5000} {
		path, want, wantChanges := write1(t, changes)
		progress := int64(0)
		f, err := Open(t.Context(), path, ReadOptions{OnProgress: func(done, total int64) {
			if done > total {
				t.Errorf("%d of %d bytes", done, total)
			}
			progress = done
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := f.Contents(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if changes > 0 && progress == 0 {
			t.Error("no progress was told")
		}
		compareContents(t, got, &want)
		compareChanges(t, got, wantChanges)
		status, err := f.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wantStatus := statusByBolt(t, path)
		if changes > 0 {
			wantStatus.Revision = wantChanges[changes-1].main
		}
		wantStatus.Keys = status.Keys // see TestStatusCountsKeysAlive
		if *status != *wantStatus {
			t.Errorf("status %+v, want %+v", status, wantStatus)
		}
	}
}

func compareContents(t *testing.T, got, want *Contents) {
	t.Helper()
	g, w := *got, *want
	g.Revisions, w.Revisions = nil, nil
	// Leases come in the order of their keys, which are without sign.
	if len(g.Leases) != 2 || g.Leases[0] != w.Leases[0] || g.Leases[1] != w.Leases[1] {
		t.Errorf("leases %v, want %v", g.Leases, w.Leases)
	}
	if len(g.Alarms) != 1 || !proto.Equal(g.Alarms[0], w.Alarms[0]) || len(g.Users) != 1 || !proto.Equal(g.Users[0], w.Users[0]) ||
		len(g.Roles) != 1 || !proto.Equal(g.Roles[0], w.Roles[0]) {
		t.Errorf("alarms %v, users %v, roles %v", g.Alarms, g.Users, g.Roles)
	}
	for _, c := range []*Contents{&g, &w} {
		c.Leases, c.Alarms, c.Users, c.Roles = nil, nil, nil, nil
	}
	if !reflect.DeepEqual(g, w) {
		t.Errorf("got %+v\nwant %+v", g, w)
	}
}

func compareChanges(t *testing.T, c *Contents, want []change) {
	t.Helper()
	n := 0
	if err := c.Revisions(func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error {
		if n >= len(want) {
			return errors.New("too many changes")
		}
		w := want[n]
		if main != w.main || sub != w.sub || tombstone != w.tombstone || !proto.Equal(kv, w.kv) {
			return fmt.Errorf("change %d is %d/%d %v %v, want %d/%d %v %v", n, main, sub, tombstone, kv, w.main, w.sub, w.tombstone, w.kv)
		}
		n++
		return nil
	}); err != nil || n != len(want) {
		t.Errorf("%d changes, want %d: %v", n, len(want), err)
	}
}

// statusByBolt asks bbolt for what Status must find by itself.
func statusByBolt(t *testing.T, path string) *Status {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := &Status{Version: "3.7.0"}
	if err := db.View(func(tx *bolt.Tx) error {
		s.Size = tx.Size()
		sum := newCRC()
		if err := tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			sum.Write(name)
			return b.ForEach(func(k, v []byte) error {
				sum.Write(k)
				sum.Write(v)
				return nil
			})
		}); err != nil {
			return err
		}
		s.Hash = sum.Sum32()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStatusCountsKeysAlive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "snapshot")
	changes := []struct {
		key       string
		tombstone bool
	}{{"a", false}, {"b", false}, {"a", false}, {"b", true}, {"c", false}, {"gone", true}}
	if err := Write(t.Context(), path, Contents{Revisions: func(fn func(main, sub int64, tombstone bool, kv *mvccpb.KeyValue) error) error {
		for i, c := range changes {
			if err := fn(int64(i+2), 0, c.tombstone, &mvccpb.KeyValue{Key: []byte(c.key)}); err != nil {
				return err
			}
		}
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if s, err := f.Status(t.Context()); err != nil || s.Keys != 2 || s.Revision != 7 {
		t.Errorf("%+v, %v; want 2 keys at revision 7", s, err)
	}
}

// TestDamageIsFound changes a snapshot in ways that a disk or a copy does.
func TestDamageIsFound(t *testing.T) {
	path, _, _ := write1(t, 500)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"a bit":         func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"the checksum":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"cut short":     func(b []byte) []byte { return b[:len(b)/2] },
		"no checksum":   func(b []byte) []byte { return b[:len(b)-32] },
		"pages are cut": func(b []byte) []byte { return append(b[:len(b)/8192*4096], b[len(b)-32:]...) },
		"empty":         func(b []byte) []byte { return nil },
		"another file":  func(b []byte) []byte { return bytes.Repeat([]byte("text "), 2000) },
	} {
		t.Run(name, func(t *testing.T) {
			bad := filepath.Join(t.TempDir(), "bad")
			if err := os.WriteFile(bad, spoil(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := Open(t.Context(), bad, ReadOptions{})
			if err == nil {
				f.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), bad) {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
	if f, err := Open(t.Context(), filepath.Dir(path), ReadOptions{}); err == nil {
		f.Close()
		t.Error("a directory was opened")
	}
}

// TestCutShortIsFoundWithoutChecksum: bbolt itself would end the process.
func TestCutShortIsFoundWithoutChecksum(t *testing.T) {
	path, _, _ := write1(t, 5000)
	if err := os.Truncate(path, 64<<10); err != nil {
		t.Fatal(err)
	}
	f, err := Open(t.Context(), path, ReadOptions{Unverified: true})
	if err == nil {
		f.Close()
		t.Fatal("it was opened")
	}
	if damage := new(DamageError); !errors.As(err, &damage) || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("got %v", err)
	}
}

func TestADatabaseInUseIsRefused(t *testing.T) {
	path, _, _ := write1(t, 1)
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if f, err := Open(t.Context(), path, ReadOptions{Unverified: true}); !errors.Is(err, ErrInUse) {
		f.Close()
		t.Errorf("got %v", err)
	}
}

func TestAnEndedContextStopsTheReading(t *testing.T) {
	path, _, _ := write1(t, 500)
	f, err := Open(t.Context(), path, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Contents(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("contents: %v", err)
	}
	if _, err := f.Status(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("status: %v", err)
	}
	if _, err := Open(ctx, path, ReadOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("open: %v", err)
	}
}

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		storage, cluster string
		ok               bool
	}{
		{"", "", true}, {"", "3.0.0", true}, {"", "3.5.0", true}, {"3.6.0", "3.6.0", true}, {"3.7.0", "3.7.0", true},
		{"3.7.9", "3.7.0", true}, {"3.8.0", "3.7.0", false}, {"3.7.0", "3.8.0", false}, {"4.0.0", "", false}, {"x", "", false}, {"3", "", false},
	} {
		err := (&Contents{StorageVersion: tt.storage, ClusterVersion: tt.cluster}).CheckVersion("3.7.0")
		if (err == nil) != tt.ok {
			t.Errorf("storage %q, cluster %q: %v", tt.storage, tt.cluster, err)
		}
	}
}

// FuzzRead overwrites parts of good files: an error is an answer, a panic or a
// loop is not.
func FuzzRead(f *testing.F) {
	var good [][]byte
	for _, n := range []int{0, 20, 400} {
		path, _, _ := write1(f, n)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		good = append(good, b[:len(b)-32])
	}
	for i := range good {
		f.Add(uint8(i), uint32(0), []byte{}, uint32(0), []byte{})
		f.Add(uint8(i), uint32(4*4096+8), []byte{1, 0, 0xff, 0xff}, uint32(5*4096), bytes.Repeat([]byte{0xff}, 32))
	}
	f.Fuzz(func(t *testing.T, which uint8, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte) {
		b := bytes.Clone(good[int(which)%len(good)])
		copy(b[int(at1)%len(b):], patch1)
		copy(b[int(at2)%len(b):], patch2)
		tree, err := openTree("file", bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		file := &File{tree: tree}
		if c, err := file.Contents(t.Context()); err == nil {
			_ = c.Revisions(func(main, _ int64, _ bool, _ *mvccpb.KeyValue) error {
				if main < 1 {
					t.Errorf("revision %d", main)
				}
				return nil
			})
		}
		_, _ = file.Status(t.Context())
	})
}
