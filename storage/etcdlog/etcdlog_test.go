package etcdlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// A log that etcd itself has written is read in the tests module, where etcd
// also starts on one that was written here. Here are the cases in between.

var start = Start{ClusterID: 0xc, MemberID: 0xa, Members: []Member{
	{ID: 0xa, PeerURLs: []string{"http://a"}, Name: "a"},
	{ID: 0xb, PeerURLs: []string{"http://b"}, IsLearner: true},
}}

// entry is the record of an entry, after w's records.
func (w *writer) entry(t testing.TB, index uint64, data string) {
	term := uint64(2)
	if err := w.message(kindEntry, &raftpb.Entry{Index: &index, Term: &term, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

// logOf writes files of a log into a new directory.
func logOf(t testing.TB, files ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	for i, b := range files {
		if err := os.WriteFile(filepath.Join(dir, fileName(uint64(i+3), uint64(i*10))), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// begun is a writer that has written the start.
func begun(t testing.TB) *writer {
	t.Helper()
	w := &writer{}
	if err := w.start(&start); err != nil {
		t.Fatal(err)
	}
	return w
}

// next ends a file and begins the one after it.
func (w *writer) next() (file []byte) {
	file, w.buf = w.buf, nil
	w.record(kindCRC, nil)
	w.record(kindMetadata, appendNumbers(nil, start.MemberID, start.ClusterID))
	return file
}

func indexes(l *Log) (list []uint64) {
	for _, e := range l.Entries {
		list = append(list, e.GetIndex())
	}
	return list
}

func TestStart(t *testing.T) {
	dir := t.TempDir()
	if found, err := Exists(dir); found || err != nil {
		t.Fatalf("a log in an empty directory: %v, %v", found, err)
	}
	if err := Write(dir, start); err != nil {
		t.Fatal(err)
	}
	if found, err := Exists(dir); !found || err != nil {
		t.Fatalf("no log where one was written: %v, %v", found, err)
	}
	if err := Write(dir, start); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second log beside the first: %v", err)
	}
	l, err := Read(t.Context(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	index, term := start.Position()
	if l.ClusterID != 0xc || l.MemberID != 0xa || l.HardState.GetCommit() != index || l.HardState.GetTerm() != term || l.LastIndex != index {
		t.Errorf("got %+v", l)
	}
	if want := (Snapshot{index, term}); len(l.Snapshots) != 2 || l.Snapshots[1] != want {
		t.Errorf("snapshots %v, want the second to be %v", l.Snapshots, want)
	}
	if !slices.Equal(indexes(l), []uint64{1, 2}) || l.Entries[1].GetType() != raftpb.EntryConfChange {
		t.Errorf("entries %v", l.Entries)
	}
}

func TestEntries(t *testing.T) {
	for _, tt := range []struct {
		name       string
		entries    []uint64 // after those of the start, 1 and 2
		after      uint64
		want       []uint64
		last       uint64
		continuous bool
	}{
		{"all", []uint64{3, 4, 5}, 0, []uint64{1, 2, 3, 4, 5}, 5, true},
		{"some", []uint64{3, 4, 5}, 3, []uint64{4, 5}, 5, true},
		{"none", []uint64{3, 4, 5}, 5, nil, 5, true},
		{"none so far", []uint64{3, 4, 5}, 9, nil, 5, true},
		{"replaced", []uint64{3, 4, 5, 4}, 2, []uint64{3, 4}, 4, true},
		{"replaced and more", []uint64{3, 4, 5, 4, 5, 6}, 3, []uint64{4, 5, 6}, 6, true},
		{"replaced from before", []uint64{3, 4, 5, 3}, 3, nil, 3, true},
		{"all replaced", []uint64{3, 4, 5, 4}, 4, nil, 4, true},
		{"a gap", []uint64{3, 9, 10}, 2, []uint64{9, 10}, 10, false},
		{"a gap that a snapshot covers", []uint64{3, 9, 10}, 8, []uint64{9, 10}, 10, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := begun(t)
			for _, i := range tt.entries {
				w.entry(t, i, "data")
			}
			l, err := Read(t.Context(), logOf(t, w.buf), tt.after)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(indexes(l), tt.want) || l.LastIndex != tt.last || l.Continuous(tt.after) != tt.continuous {
				t.Errorf("entries %v, last %d, continuous %v", indexes(l), l.LastIndex, l.Continuous(tt.after))
			}
		})
	}
}

// twoFiles returns a log of two files with entries 3 to 6, each of them of
// several sectors.
func twoFiles(t testing.TB) (first, second []byte) {
	w := begun(t)
	long := strings.Repeat("data", 300)
	w.entry(t, 3, long)
	w.entry(t, 4, long)
	first = w.next()
	w.entry(t, 5, long)
	w.entry(t, 6, long)
	return first, w.buf
}

func TestCrashes(t *testing.T) {
	first, second := twoFiles(t)
	for name, tt := range map[string]struct {
		second []byte
		want   []uint64
	}{
		"whole":                   {second, []uint64{3, 4, 5, 6}},
		"space made in advance":   {append(bytes.Clone(second), make([]byte, 5000)...), []uint64{3, 4, 5, 6}},
		"cut within a record":     {second[:len(second)-100], []uint64{3, 4, 5}},
		"cut within a length":     {second[:len(second)-1200-24], []uint64{3, 4, 5}},
		"a sector is not written": {zeroed(second, len(second)/512*512-512, 512), []uint64{3, 4, 5}},
		"an empty second file":    {nil, []uint64{3, 4}},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Read(t.Context(), logOf(t, first, tt.second), 2)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(indexes(l), tt.want) {
				t.Errorf("entries %v, want %v", indexes(l), tt.want)
			}
		})
	}
}

func zeroed(b []byte, at, n int) []byte {
	b = bytes.Clone(b)
	clear(b[at : at+n])
	return b
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func TestDamage(t *testing.T) {
	first, second := twoFiles(t)
	foreign := begun(t)
	foreign.buf = nil
	foreign.crc = binary.LittleEndian.Uint32([]byte{1, 2, 3, 4})
	foreign.record(kindCRC, nil)
	for name, log := range map[string][][]byte{
		"a bit in the first file":        {flipped(first, len(first)-100), second},
		"a bit in the last entry":        {first, flipped(second, len(second)-100)},
		"the first file is cut":          {first[:len(first)-100], second},
		"a sector of the first is gone":  {zeroed(first, len(first)/512*512-512, 512), second},
		"another log follows":            {first, foreign.buf},
		"another member's log follows":   {first, ofOther(t, first)},
		"a record of an unknown kind":    {unknownKind(t)},
		"nothing says whose it is":       {nil},
		"a record longer than the first": {append(bytes.Clone(first), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0), second},
	} {
		t.Run(name, func(t *testing.T) {
			if l, err := Read(t.Context(), logOf(t, log...), 2); err == nil {
				t.Errorf("it was read: %v", indexes(l))
			}
		})
	}
	t.Run("a file is missing", func(t *testing.T) {
		dir := logOf(t, first, second, second)
		if err := os.Remove(filepath.Join(dir, fileName(4, 10))); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(t.Context(), dir, 0); err == nil || !strings.Contains(err.Error(), "number 4 is missing") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no file", func(t *testing.T) {
		if _, err := Read(t.Context(), t.TempDir(), 0); err == nil {
			t.Error("it was read")
		}
	})
}

// ofOther continues the checksum of first, as another member.
func ofOther(t *testing.T, first []byte) []byte {
	r := reader{log: &Log{}}
	if err := r.records("first", bytes.NewReader(first), int64(len(first)), false); err != nil {
		t.Fatal(err)
	}
	w := &writer{crc: r.crc}
	w.record(kindCRC, nil)
	w.record(kindMetadata, appendNumbers(nil, 0xe, start.ClusterID))
	return w.buf
}

func unknownKind(t *testing.T) []byte {
	w := begun(t)
	w.record(6, []byte("new"))
	return w.buf
}

// FuzzRead reads logs with any bytes in them.
func FuzzRead(f *testing.F) {
	first, second := twoFiles(f)
	f.Add(first, true)
	f.Add(second, false)
	f.Add(begun(f).buf, true)
	f.Add([]byte{}, true)
	f.Fuzz(func(t *testing.T, b []byte, last bool) {
		r := reader{log: &Log{}, after: 3}
		if err := r.records("log", bytes.NewReader(b), int64(len(b)), last); err != nil {
			return
		}
		for i, e := range r.log.Entries {
			if e.GetIndex() != r.log.Entries[0].GetIndex()+uint64(i) || e.GetIndex() <= 3 {
				t.Fatalf("entries %v", indexes(r.log))
			}
		}
	})
}
