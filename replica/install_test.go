package replica

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
)

// A process ends when a reset of the log has its name, but not yet on disk. The next
// start goes on with the snapshot; then the power fails. What is left must be the
// state before or after.
func TestPowerFailsInTheStartAfterAnInterruptedInstallation(t *testing.T) {
	disk := vfs.NewCrashableMem()
	ahead := newMember(t, vfs.NewMem(), 1)
	ahead.put("2", "3", "4", "5", "6")

	var broken atomic.Bool
	gone := errors.New("the process has ended")
	logDir := filepath.Join("member2", LogDir)
	fs := errorfs.Wrap(disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		// The sync of the log's directory that follows the renaming.
		if broken.Load() && op.Kind == errorfs.OpFileSync && strings.TrimSuffix(op.Path, "/") == logDir {
			return gone
		}
		return nil
	}))
	open := func(fs vfs.FS) (*Dir, *machine.Machine, error) {
		dir, err := Open(Options{Path: "member2", FS: fs, Logger: zap.NewNop()}, func() (*Founding, error) {
			return &Founding{ClusterID: 1, MemberID: 2, Members: []machine.Member{{ID: 1}, {ID: 2}}}, nil
		})
		if err != nil {
			return nil, nil, err
		}
		m, err := machine.Open(machine.Options{Engine: dir.Engine, Logger: zap.NewNop()})
		must(t, err)
		return dir, m, nil
	}
	end := func(dir *Dir, m *machine.Machine) {
		m.Close()
		must(t, errors.Join(dir.Engine.Close(), dir.Close()))
	}

	dir, m, err := open(fs)
	must(t, err)
	must(t, dir.MakeWritable())
	must(t, dir.Log.Settle())
	must(t, dir.Log.Append(nil, []*pb.Entry{{Index: new(uint64(2)), Term: new(uint64(2))}}))
	r := New(dir, m, Config{Logger: zap.NewNop(), Switched: func(*machine.Machine) {}, Changed: func([]machine.Change) {}})
	c, err := ahead.Take()
	must(t, err)
	into, err := r.Begin(c.Index)
	must(t, err)
	for _, name := range c.Files {
		copyAcross(t, ahead.dir.fs, filepath.Join(c.Dir, name), disk, filepath.Join(into, name))
	}
	must(t, SyncDir(disk, into))
	broken.Store(true)
	err = r.Complete(c.Index, into, func() (bool, error) {
		return true, dir.Log.Reset(&pb.HardState{Term: new(uint64(2)), Vote: new(uint64(0)), Commit: &c.Index}, c.Index, c.Term)
	})
	if !errors.Is(err, gone) {
		t.Fatalf("the reset: %v", err)
	}
	broken.Store(false)
	must(t, errors.Join(r.Close(false), dir.Close()))
	c.Release()

	dir, m, err = open(disk) // the page cache is still there
	must(t, err)
	if dir.EngineName != SnapshotDir(c.Index) {
		t.Fatalf("opened %s", dir.EngineName)
	}
	must(t, dir.MakeWritable())
	left := disk.CrashClone(vfs.CrashCloneCfg{}) // before consensus.New settles the log
	end(dir, m)

	dir, m, err = open(left)
	must(t, err)
	first, _ := dir.Log.FirstIndex()
	last, _ := dir.Log.LastIndex()
	if applied := m.Applied(); applied > last || applied+1 < first {
		names, _ := left.List("member2")
		t.Errorf("the engine %s has applied %d, the log holds %d to %d: the member is lost; there are %v", dir.EngineName, applied, first, last, names)
	}
	end(dir, m)
}

func copyAcross(t *testing.T, from vfs.FS, name string, to vfs.FS, as string) {
	t.Helper()
	f, err := from.Open(name)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	b := make([]byte, info.Size())
	if len(b) > 0 {
		_, err = f.ReadAt(b, 0)
		must(t, err)
	}
	g, err := to.Create(as, vfs.WriteCategoryUnspecified)
	must(t, err)
	_, err = g.Write(b)
	must(t, errors.Join(err, g.Sync(), g.Close(), f.Close()))
}

// The disk has no room for identity.json when a snapshot is installed: nothing of the
// new state may stay behind. (TestMain looks for goroutines.)
func TestInstallationThatFailsLeavesNothing(t *testing.T) {
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpCreate && filepath.Base(op.Path) == IdentityFile+".tmp" {
			return errors.New("no space")
		}
		return nil
	}))
	ahead, behind := newMember(t, fs, 1), newMember(t, fs, 2)
	ahead.put("2", "3", "4")
	c, err := ahead.Take()
	must(t, err)
	defer c.Release()
	into, err := behind.Begin(c.Index)
	must(t, err)
	for _, name := range c.Files {
		must(t, vfs.Copy(fs, filepath.Join(c.Dir, name), filepath.Join(into, name)))
	}
	full.Store(true)
	err = behind.Complete(c.Index, into, func() (bool, error) { return true, behind.Install(c.Index, c.Term) })
	full.Store(false)
	if err == nil {
		t.Fatal("installed")
	}
	t.Log(err)
}

// As long as a snapshot is being installed no other is received: each is a copy of all the data.
func TestNoSnapshotIsReceivedWhileAnotherIsInstalled(t *testing.T) {
	fs := vfs.NewMem()
	ahead, behind := newMember(t, fs, 1), newMember(t, fs, 2)
	for range 3 {
		ahead.put("x")
		c, err := ahead.Take()
		must(t, err)
		into, err := behind.Begin(c.Index)
		if err != nil {
			c.Release()
			return
		}
		for _, name := range c.Files {
			must(t, vfs.Copy(fs, filepath.Join(c.Dir, name), filepath.Join(into, name)))
		}
		must(t, behind.Complete(c.Index, into, func() (bool, error) { return true, nil })) // and will be installed
		c.Release()
	}
	names, err := fs.List("member2")
	must(t, err)
	t.Errorf("three are there at once: %v", names)
}

// What is installed must be of the entry that consensus was told of: else entries would be applied twice, or not at all.
func TestAnotherIndexIsNotInstalled(t *testing.T) {
	fs := vfs.NewMem()
	ahead, behind := newMember(t, fs, 1), newMember(t, fs, 2)
	ahead.put("2", "3", "4")
	c, err := ahead.Take()
	must(t, err)
	defer c.Release()
	told := c.Index + 1
	into, err := behind.Begin(told)
	must(t, err)
	for _, name := range c.Files {
		must(t, vfs.Copy(fs, filepath.Join(c.Dir, name), filepath.Join(into, name)))
	}
	err = behind.Complete(told, into, func() (bool, error) { return true, behind.Install(told, c.Term) })
	if err == nil {
		t.Errorf("a snapshot of entry %d is installed as one of entry %d", c.Index, told)
	} else if want := fmt.Sprint(c.Index); !strings.Contains(err.Error(), want) {
		t.Errorf("%v, which does not name %s", err, want)
	}
}
