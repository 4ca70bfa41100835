package replica

import (
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
)

// FuzzIdentity reads whatever may stand in identity.json. What is accepted can be written and is then read as the same.
func FuzzIdentity(f *testing.F) {
	fs := vfs.NewMem()
	if err := WriteIdentity(fs, "", NewIdentity(0xcdf818194e3a8c32, 7)); err != nil {
		f.Fatal(err)
	}
	f.Add(content(f, fs))
	f.Add([]byte(`{"format":2,"clusterID":"1","memberID":"2","complete":true}`))
	f.Add([]byte(`{"format":2,"clusterID":"-1","memberID":"10000000000000000","complete":true,"engine":"engine-9"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		fs := vfs.NewMem()
		file, err := fs.Create(IdentityFile, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(append([]byte(nil), b...)); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		id, err := ReadIdentity(fs, "")
		if err != nil {
			return
		}
		if id == nil || id.Format != Format {
			t.Fatalf("%q is read as %+v", b, id)
		}
		if err := WriteIdentity(fs, "", id); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadIdentity(fs, ""); err != nil || *again != *id {
			t.Errorf("%+v, written and read, is %+v: %v", id, again, err)
		}
		cluster, member, err := id.ids()
		if err != nil {
			return
		}
		made := NewIdentity(cluster, member)
		if c, m, err := made.ids(); err != nil || c != cluster || m != member {
			t.Errorf("ids %x and %x became %x and %x: %v", cluster, member, c, m, err)
		}
	})
}

// Whichever bit flips in an identity, what was served is not taken for what was not, nor for another engine's that is there; ids are
// compared with those in the log.
func TestDamagedIdentity(t *testing.T) {
	fs := vfs.NewMem()
	want := NewIdentity(0xcdf818194e3a8c32, 7)
	want.Complete, want.Engine = true, SnapshotDir(0x1234)
	if err := WriteIdentity(fs, "", want); err != nil {
		t.Fatal(err)
	}
	b := content(t, fs)
	for bit := range 8 * len(b) {
		flipped := slices.Clone(b)
		flipped[bit/8] ^= 1 << (bit % 8)
		f, err := fs.Create(IdentityFile, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(flipped); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if id, err := ReadIdentity(fs, ""); err == nil && (!id.Complete || id.Engine == "") {
			t.Errorf("%s is read as %+v", flipped, id)
		}
	}
}

func content(tb testing.TB, fs vfs.FS) []byte {
	tb.Helper()
	file, err := fs.Open(filepath.Join("", IdentityFile))
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	b := make([]byte, info.Size())
	if _, err := file.ReadAt(b, 0); err != nil {
		tb.Fatal(err)
	}
	return b
}

// The name of the data directory must be durable before the member acknowledges
// anything: in each directory that was made, and in that where the first of them is.
func TestNameOfTheDataDirectorySurvivesACrash(t *testing.T) {
	for _, path := range []string{"data", "data/", "var/lib/data"} {
		disk := vfs.NewCrashableMem()
		d, err := Open(Options{Path: path, FS: disk, Logger: zap.NewNop()}, func() (*Founding, error) {
			return &Founding{ClusterID: 1, MemberID: 2, Members: []machine.Member{{ID: 2, PeerURLs: []string{"http://a:1"}}}}, nil
		})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		left := disk.CrashClone(vfs.CrashCloneCfg{})
		if id, err := ReadIdentity(left, path); err != nil || id == nil || !id.Complete {
			t.Errorf("%s: after a failure of the power there is %+v, %v", path, id, err)
		}
		d.Engine.Close()
		d.Close()
	}
}

// readOnlyRoot is a disk that is mounted at /data, below a file system that is only read and has nothing to sync: squashfs and
// erofs have no fsync for directories, and the kernel answers EINVAL.
type readOnlyRoot struct{ vfs.FS }

func (r readOnlyRoot) OpenDir(name string) (vfs.File, error) {
	f, err := r.FS.OpenDir(name)
	if name == "/" {
		return unsyncable{f}, err
	}
	return f, err
}

type unsyncable struct{ vfs.File }

func (unsyncable) Sync() error { return syscall.EINVAL }

func TestMountPointBelowAReadOnlyRoot(t *testing.T) {
	mem := vfs.NewMem()
	if err := mem.MkdirAll("/data", 0o755); err != nil { // the mount point was there before
		t.Fatal(err)
	}
	d, err := Open(Options{Path: "/data", FS: readOnlyRoot{mem}, Logger: zap.NewNop()}, func() (*Founding, error) {
		return &Founding{ClusterID: 1, MemberID: 2, Members: []machine.Member{{ID: 2, PeerURLs: []string{"http://a:1"}}}}, nil
	})
	if err != nil {
		t.Fatalf("a new member does not start in a directory that was there and is writable: %v", err)
	}
	d.Engine.Close()
	d.Close()
}
