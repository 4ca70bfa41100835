package replica

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// Dir is an open data directory: locked, of this member, with its log open.
// Who opens it closes the engine himself, which may be another by then.
type Dir struct {
	ClusterID, MemberID uint64
	Path                string
	Log                 *wal.Log
	Engine              *engine.Engine // the one of the start
	EngineName          string         // its directory in Path

	fs     vfs.FS
	engine engine.Options // of the engines that snapshots bring
	id     *Identity
	locks  []io.Closer
}

// Options say where a data directory is and what the parts in it are opened with.
type Options struct {
	// Path is the directory, and LogPath that of the log, if it has one of its own.
	Path, LogPath string
	// FS is the file system; nil is the disk.
	FS     vfs.FS
	Logger *zap.Logger
	// Log and Engine are the options of both, but for where they are and whose, and for
	// Engine's Merger.
	Log    wal.Options
	Engine engine.Options
}

// Founding is what the data directory of a member is made of.
type Founding struct {
	ClusterID, MemberID uint64
	Members             []machine.Member
	Joins               bool // the others have the state, and send it
}

// resolved fills in what follows from the rest.
func (o Options) resolved() Options {
	o.Engine.Dir = filepath.Join(o.Path, EngineDir)
	o.Log.Dir = filepath.Join(o.Path, LogDir)
	if o.LogPath != "" {
		o.Log.Dir = o.LogPath
	}
	o.Log.FS, o.Engine.FS = o.FS, o.FS // which watch over the disk if it is nil
	o.Engine.Merger = machine.Merger
	if o.FS == nil {
		o.FS = vfs.Default
	}
	return o
}

// Open opens a data directory and makes it first if there is none, of what find
// returns. When it refuses, nothing has been changed.
func Open(o Options, find func() (*Founding, error)) (_ *Dir, err error) {
	o = o.resolved()
	if err := refuseEtcd(o.FS, o.Path); err != nil {
		return nil, err
	}
	d := &Dir{Path: o.Path, fs: o.FS, engine: o.Engine}
	defer func() {
		if err != nil {
			if d.Engine != nil {
				err = errors.Join(err, d.Engine.Close())
			}
			err = errors.Join(err, d.Close()) // d is not returned then
		}
	}()
	for _, dir := range []string{o.Path, o.Log.Dir} {
		if err := makeDir(o.FS, dir); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
		if err := d.lock(dir); err != nil {
			return nil, err
		}
	}
	id, err := ReadIdentity(o.FS, o.Path)
	if err != nil {
		return nil, err
	}
	if id == nil || !id.Complete {
		if id == nil {
			err = refuseRemains(o)
		} else {
			o.Logger.Info("the first start of this member was interrupted; making its data directory anew", zap.String("data-dir", o.Path))
			err = refuseOthersLog(o.FS, id, o.Log)
		}
		if err != nil {
			return nil, err
		}
		f, err := find()
		if err != nil {
			return nil, err
		}
		if err := syncNames(o); err != nil {
			return nil, err
		}
		if id, err = o.make(f); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
	}
	if err := d.open(id, o); err != nil {
		return nil, err
	}
	return d, nil
}

// makeDir makes a directory, if there is none, and those above it, so that their
// names survive a crash.
func makeDir(fs vfs.FS, dir string) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	if _, err := fs.Stat(dir); err == nil || dir == parent {
		return nil
	}
	if err := makeDir(fs, parent); err != nil {
		return err
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return SyncDir(fs, parent)
}

// syncNames makes the names of the directories durable, if somebody else has just made them, or a start that
// was interrupted. Where that is forbidden or not possible, as in a file system that is only read, so was making them.
func syncNames(o Options) error {
	for _, dir := range []string{o.Path, o.Log.Dir} {
		parent := filepath.Dir(filepath.Clean(dir))
		err := SyncDir(o.FS, parent)
		if err != nil && !slices.ContainsFunc([]error{fs.ErrPermission, syscall.EINVAL, syscall.ENOTSUP, syscall.EROFS}, func(target error) bool { return errors.Is(err, target) }) {
			return fmt.Errorf("make the name of %s durable: sync %s: %w", dir, parent, err)
		}
	}
	return nil
}

func (d *Dir) lock(dir string) error {
	l, err := d.fs.Lock(filepath.Join(dir, LockFile))
	if err != nil {
		return fmt.Errorf("%s is in use by another process, or cannot be locked: %w; stop that process, or choose another directory", dir, err)
	}
	d.locks = append(d.locks, l)
	return nil
}

func (d *Dir) open(id *Identity, o Options) (err error) {
	if d.ClusterID, d.MemberID, err = id.ids(); err != nil {
		return err
	}
	o.Log.ClusterID, o.Log.MemberID = d.ClusterID, d.MemberID
	if d.Log, err = wal.Open(o.Log); err != nil {
		return err
	}
	d.id = id
	name, err := d.engineName()
	if err != nil {
		return err
	}
	d.id.Engine = name
	d.EngineName = name
	o.Engine.Dir = filepath.Join(d.Path, name)
	// Nothing is changed before what is there has been judged; see MakeWritable.
	o.Engine.MustExist, o.Engine.ReadOnly = true, true
	if d.Engine, err = engine.Open(o.Engine); err != nil {
		return Advise(err)
	}
	return nil
}

// MakeWritable ends the time in which opening changes nothing. It is called
// when all of the state has been loaded from the engine and fits the log.
func (d *Dir) MakeWritable() error {
	// First: which engine is in use follows from where the log begins, and that may not be on the disk yet.
	if err := d.Log.Settle(); err != nil {
		return err
	}
	if err := d.Engine.MakeWritable(); err != nil {
		return Advise(err)
	}
	if err := d.use(d.id.Engine); err != nil {
		return err
	}
	return d.removeRemains()
}

// engineName returns the directory of the engine to open. It is the one that the
// identity names, unless a crash has interrupted the installation of a snapshot:
// then the log begins where that ends, and its files are complete.
func (d *Dir) engineName() (string, error) {
	first, err := d.Log.FirstIndex()
	if err != nil {
		return "", err
	}
	snapshot := SnapshotDir(first - 1)
	if _, err := d.fs.Stat(filepath.Join(d.Path, snapshot)); err == nil {
		return snapshot, nil
	}
	return cmp.Or(d.id.Engine, EngineDir), nil
}

// SnapshotDir names the directory of the engine that a snapshot of the entry with
// the index brings.
func SnapshotDir(index uint64) string { return fmt.Sprintf("%s-%016x", EngineDir, index) }

// use makes a directory the engine's from the next start on.
func (d *Dir) use(name string) error {
	if name == EngineDir {
		name = ""
	}
	saved, err := ReadIdentity(d.fs, d.Path)
	if err != nil {
		return err
	}
	if saved == nil {
		return fmt.Errorf("%s has gone from %s", IdentityFile, d.Path)
	}
	if saved.Engine == name {
		return nil
	}
	saved.Engine = name
	return WriteIdentity(d.fs, d.Path, saved)
}

// removeRemains removes what a crash has left of snapshots being made, sent,
// received or replaced. It is called when the engine in use is known.
func (d *Dir) removeRemains() error {
	names, err := d.fs.List(d.Path)
	if err != nil {
		return err
	}
	inUse := cmp.Or(d.id.Engine, EngineDir)
	for _, name := range slices.Sorted(slices.Values(names)) {
		if name == inUse || !slices.ContainsFunc(remains, func(pattern string) bool { matches, _ := filepath.Match(pattern, name); return matches }) {
			continue
		}
		if err := d.fs.RemoveAll(filepath.Join(d.Path, name)); err != nil {
			return err
		}
	}
	return nil
}

// Advise adds what to do to an error about the engine's files.
func Advise(err error) error {
	if strings.Contains(err.Error(), "format major version") {
		return fmt.Errorf("%w: start it with a newer version of Coterie", err)
	}
	return fmt.Errorf("%w: if a file is damaged or missing, restore this member from a snapshot, or remove its data directory and let it join again", err)
}

// Close releases what is open but for the engine, the locks last.
func (d *Dir) Close() error {
	var errs []error
	if d.Log != nil {
		errs = append(errs, d.Log.Close())
	}
	for _, l := range d.locks {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// refuseEtcd recognises a data directory of etcd's own.
func refuseEtcd(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(filepath.Join(dir, "member", "snap")); err == nil {
		return fmt.Errorf("%s is a data directory of etcd, which Coterie does not run on: choose another --data-dir, or move it with 'coterie migrate'", dir)
	}
	return nil
}

// refuseRemains recognises data without an identity, which must not be
// overwritten.
func refuseRemains(o Options) error {
	if _, err := o.FS.Stat(filepath.Join(o.Path, StagingDir)); err == nil {
		return fmt.Errorf("%s holds what an interrupted restoration has left: restore again, or empty it", o.Path)
	}
	for _, part := range []string{o.Engine.Dir, o.Log.Dir} {
		names, err := o.FS.List(part)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, name := range names {
			if name != LockFile {
				return fmt.Errorf("%s holds data, but %s has no %s that says whose it is: check --data-dir and --wal-dir, or empty both", part, o.Path, IdentityFile)
			}
		}
	}
	return nil
}

// refuseOthersLog recognises a log directory that is not of the interrupted
// first start with the identity, which makes no entries: --wal-dir may have been
// changed since, and what it holds is about to be removed.
func refuseOthersLog(fs vfs.FS, id *Identity, o wal.Options) error {
	others := fmt.Errorf("%s holds what is not of the interrupted first start of this member: check --wal-dir, or empty that directory", o.Dir)
	names, err := fs.List(o.Dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != LockFile && filepath.Ext(strings.TrimSuffix(name, ".tmp")) != ".wal" {
			return others
		}
	}
	if found, err := wal.Exists(fs, o.Dir); err != nil || !found {
		return err
	}
	if o.ClusterID, o.MemberID, err = id.ids(); err != nil {
		return err
	}
	log, err := wal.Open(o)
	if err != nil {
		return errors.Join(others, err)
	}
	last, err := log.LastIndex()
	if last > FirstIndex {
		err = errors.Join(others, err)
	}
	return errors.Join(err, log.Close())
}

// make makes the data directory of the first start of a member.
func (o *Options) make(f *Founding) (*Identity, error) {
	id := NewIdentity(f.ClusterID, f.MemberID)
	o.Logger.Info("making a data directory", zap.String("cluster-id", id.ClusterID), zap.String("local-member-id", id.MemberID),
		zap.String("data-dir", o.Path), zap.Int("members", len(f.Members)), zap.Bool("joins", f.Joins))
	// An interrupted start goes first, while the identity that names its log is there.
	if err := errors.Join(o.FS.RemoveAll(o.Engine.Dir), removeSegments(o.FS, o.Log.Dir)); err != nil {
		return nil, err
	}
	if err := WriteIdentity(o.FS, o.Path, id); err != nil {
		return nil, err
	}
	eng, err := engine.Open(o.Engine)
	if err != nil {
		return nil, err
	}
	index, term := uint64(FirstIndex), uint64(FirstTerm)
	if f.Joins {
		index, term = 0, 0
		err = machine.BootstrapJoiner(eng, f.Members)
	} else {
		err = machine.Bootstrap(eng, index, term, f.Members)
	}
	if err := errors.Join(err, eng.Close()); err != nil {
		return nil, err
	}
	o.Log.ClusterID, o.Log.MemberID = f.ClusterID, f.MemberID
	log, err := wal.Create(o.Log, index, term)
	if err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	id.Complete = true
	return id, WriteIdentity(o.FS, o.Path, id)
}

// removeSegments empties the log's directory but for the lock, which is held.
func removeSegments(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == LockFile {
			continue
		}
		if err := fs.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return SyncDir(fs, dir)
}
