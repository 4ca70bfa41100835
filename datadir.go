package coterie

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/wal"
)

// dataFormat is the version of the layout of a data directory and of every
// format in it. Its description is docs/format.md.
const dataFormat = 1

// The state of the first cluster: a member begins as if an entry with this
// index and term had made its members. The log begins after it, so a member
// that joins later without that state cannot be fed from the log alone.
const (
	firstIndex = 1
	firstTerm  = 1
)

const (
	identityFile = "identity.json"
	lockFile     = "LOCK"
	engineDir    = "engine"
	walDir       = "wal"
)

// identity says whose a data directory is. It is written before anything else
// and again, with Complete, when all else is on disk: what is incomplete was
// never served and may be made anew.
type identity struct {
	Format    int    `json:"format"`
	ClusterID string `json:"clusterID"` // hexadecimal
	MemberID  string `json:"memberID"`
	Complete  bool   `json:"complete"`
	// Engine is the directory of the engine: the first one's, or that of the last
	// snapshot that was installed. Empty means engineDir.
	Engine string `json:"engine,omitempty"`
}

func (id *identity) ids() (cluster, member uint64, err error) {
	if cluster, err = strconv.ParseUint(id.ClusterID, 16, 64); err != nil {
		return 0, 0, fmt.Errorf("%s is damaged: cluster id %q: %w", identityFile, id.ClusterID, err)
	}
	if member, err = strconv.ParseUint(id.MemberID, 16, 64); err != nil {
		return 0, 0, fmt.Errorf("%s is damaged: member id %q: %w", identityFile, id.MemberID, err)
	}
	return cluster, member, nil
}

// dataDir is an open data directory: locked, of this member, with its log open.
// Who opens it closes the engine himself, which may be another by then.
type dataDir struct {
	clusterID, memberID uint64
	dir                 string
	id                  *identity
	log                 *wal.Log
	engine              *engine.Engine // the one of the start

	locks []io.Closer
}

// storageOptions are what the parts in a data directory are opened with.
type storageOptions struct {
	logger *zap.Logger
	wal    wal.Options
	engine engine.Options
}

// openDataDir opens the data directory of cfg and makes it first if there is
// none, of what find returns. When it refuses, nothing has been changed.
func openDataDir(cfg *Config, o storageOptions, find func() (*founding, error)) (_ *dataDir, err error) {
	o.engine.Dir = filepath.Join(cfg.DataDir, engineDir)
	o.wal.Dir = filepath.Join(cfg.DataDir, walDir)
	if cfg.WALDir != "" {
		o.wal.Dir = cfg.WALDir
	}
	if err := refuseEtcd(cfg.DataDir); err != nil {
		return nil, err
	}
	d := &dataDir{dir: cfg.DataDir}
	defer func() {
		if err != nil {
			if d.engine != nil {
				err = errors.Join(err, d.engine.Close())
			}
			err = errors.Join(err, d.close()) // d is not returned then
		}
	}()
	for _, dir := range []string{cfg.DataDir, o.wal.Dir} {
		if err := makeDir(dir); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
		if err := d.lock(dir); err != nil {
			return nil, err
		}
	}
	id, err := readIdentity(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if id == nil || !id.Complete {
		if id == nil {
			err = refuseRemains(cfg.DataDir, o)
		} else {
			o.logger.Info("the first start of this member was interrupted; making its data directory anew", zap.String("data-dir", cfg.DataDir))
			err = refuseOthersLog(id, o.wal)
		}
		if err != nil {
			return nil, err
		}
		f, err := find()
		if err != nil {
			return nil, err
		}
		if id, err = makeDataDir(cfg.DataDir, f, o); err != nil {
			return nil, fmt.Errorf("make the data directory: %w", err)
		}
	}
	if err := d.open(id, o); err != nil {
		return nil, err
	}
	return d, nil
}

// makeDir makes a directory, if there is none, so that its name survives a
// crash.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func (d *dataDir) lock(dir string) error {
	l, err := vfs.Default.Lock(filepath.Join(dir, lockFile))
	if err != nil {
		return fmt.Errorf("%s is in use by another process, or cannot be locked: %w; stop that process, or choose another directory", dir, err)
	}
	d.locks = append(d.locks, l)
	return nil
}

func (d *dataDir) open(id *identity, o storageOptions) (err error) {
	if d.clusterID, d.memberID, err = id.ids(); err != nil {
		return err
	}
	o.wal.ClusterID, o.wal.MemberID = d.clusterID, d.memberID
	if d.log, err = wal.Open(o.wal); err != nil {
		return err
	}
	d.id = id
	name, err := d.engineName()
	if err != nil {
		return err
	}
	d.id.Engine = name
	o.engine.Dir = filepath.Join(d.dir, name)
	// Nothing is changed before what is there has been judged; see makeWritable.
	o.engine.MustExist, o.engine.ReadOnly = true, true
	if d.engine, err = engine.Open(o.engine); err != nil {
		return engineAdvice(err)
	}
	return nil
}

// makeWritable ends the time in which opening changes nothing. It is called
// when all of the state has been loaded from the engine and fits the log.
func (d *dataDir) makeWritable() error {
	if err := d.engine.MakeWritable(); err != nil {
		return engineAdvice(err)
	}
	if err := d.use(d.id.Engine); err != nil {
		return err
	}
	return d.removeRemains()
}

// engineName returns the directory of the engine to open. It is the one that the
// identity names, unless a crash has interrupted the installation of a snapshot:
// then the log begins where that ends, and its files are complete.
func (d *dataDir) engineName() (string, error) {
	first, err := d.log.FirstIndex()
	if err != nil {
		return "", err
	}
	snapshot := d.snapshotDir(first - 1)
	if _, err := os.Stat(filepath.Join(d.dir, snapshot)); err == nil {
		return snapshot, nil
	}
	return cmp.Or(d.id.Engine, engineDir), nil
}

// snapshotDir names the directory of the engine that a snapshot of the entry with
// the index brings.
func (d *dataDir) snapshotDir(index uint64) string { return fmt.Sprintf("%s-%016x", engineDir, index) }

// use makes a directory the engine's from the next start on.
func (d *dataDir) use(name string) error {
	if name == engineDir {
		name = ""
	}
	saved, err := readIdentity(d.dir)
	if err != nil {
		return err
	}
	if saved == nil {
		return fmt.Errorf("%s has gone from %s", identityFile, d.dir)
	}
	if saved.Engine == name {
		return nil
	}
	saved.Engine = name
	return writeIdentity(d.dir, saved)
}

// removeRemains removes what a crash has left of snapshots being made, sent,
// received or replaced. It is called when the engine in use is known.
func (d *dataDir) removeRemains() error {
	var left []string
	for _, pattern := range []string{snapshotPattern, outgoingPattern, engineDir + "-*", engineDir} {
		found, err := filepath.Glob(filepath.Join(d.dir, pattern))
		if err != nil {
			return err
		}
		left = append(left, found...)
	}
	inUse := filepath.Join(d.dir, cmp.Or(d.id.Engine, engineDir))
	for _, path := range slices.DeleteFunc(left, func(path string) bool { return path == inUse }) {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// engineAdvice adds what to do to an error about the engine's files.
func engineAdvice(err error) error {
	if strings.Contains(err.Error(), "format major version") {
		return fmt.Errorf("%w: start it with a newer version of Coterie", err)
	}
	return fmt.Errorf("%w: if a file is damaged or missing, restore this member from a snapshot, or remove its data directory and let it join again", err)
}

// close releases what is open but for the engine, the locks last.
func (d *dataDir) close() error {
	var errs []error
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	for _, l := range d.locks {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// refuseEtcd recognises a data directory of etcd's own.
func refuseEtcd(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "member", "snap")); err == nil {
		return fmt.Errorf("%s is a data directory of etcd, which Coterie does not run on: choose another --data-dir, or move it with 'coterie migrate'", dir)
	}
	return nil
}

// refuseRemains recognises data without an identity, which must not be
// overwritten.
func refuseRemains(dir string, o storageOptions) error {
	if _, err := os.Stat(filepath.Join(dir, stagingName)); err == nil {
		return fmt.Errorf("%s holds what an interrupted restoration has left: restore again, or empty it", dir)
	}
	for _, part := range []string{o.engine.Dir, o.wal.Dir} {
		entries, err := os.ReadDir(part)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if e.Name() != lockFile {
				return fmt.Errorf("%s holds data, but %s has no %s that says whose it is: check --data-dir and --wal-dir, or empty both", part, dir, identityFile)
			}
		}
	}
	return nil
}

// refuseOthersLog recognises a log directory that is not of the interrupted
// first start with the identity, which makes no entries: --wal-dir may have been
// changed since, and what it holds is about to be removed.
func refuseOthersLog(id *identity, o wal.Options) error {
	others := fmt.Errorf("%s holds what is not of the interrupted first start of this member: check --wal-dir, or empty that directory", o.Dir)
	entries, err := os.ReadDir(o.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); name != lockFile && filepath.Ext(strings.TrimSuffix(name, ".tmp")) != ".wal" {
			return others
		}
	}
	if found, err := wal.Exists(vfs.Default, o.Dir); err != nil || !found {
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
	if last > firstIndex {
		err = errors.Join(others, err)
	}
	return errors.Join(err, log.Close())
}

// readIdentity returns nil if there is none.
func readIdentity(dir string) (*identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w: bring it back from a copy, or restore this member from a snapshot", path, err)
	}
	if id.Format > dataFormat {
		return nil, fmt.Errorf("%s has data format %d, this binary reads up to %d: start it with a newer version of Coterie", dir, id.Format, dataFormat)
	}
	if id.Format < 1 {
		return nil, fmt.Errorf("%s is damaged: data format %d", path, id.Format)
	}
	return &id, nil
}

// writeIdentity replaces the file as a whole.
func writeIdentity(dir string, id *identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, identityFile)
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// makeDataDir makes the data directory of the first start of a member.
func makeDataDir(dir string, f *founding, o storageOptions) (*identity, error) {
	id := &identity{
		Format:    dataFormat,
		ClusterID: strconv.FormatUint(f.clusterID, 16),
		MemberID:  strconv.FormatUint(f.memberID, 16),
	}
	o.logger.Info("making a data directory", zap.String("cluster-id", id.ClusterID), zap.String("local-member-id", id.MemberID),
		zap.String("data-dir", dir), zap.Int("members", len(f.members)), zap.Bool("joins", f.joins))
	// An interrupted start goes first, while the identity that names its log is there.
	if err := errors.Join(os.RemoveAll(o.engine.Dir), removeSegments(o.wal.Dir)); err != nil {
		return nil, err
	}
	if err := writeIdentity(dir, id); err != nil {
		return nil, err
	}
	eng, err := engine.Open(o.engine)
	if err != nil {
		return nil, err
	}
	index, term := uint64(firstIndex), uint64(firstTerm)
	if f.joins {
		index, term = 0, 0
		err = machine.BootstrapJoiner(eng, f.members)
	} else {
		err = machine.Bootstrap(eng, index, term, f.members)
	}
	if err := errors.Join(err, eng.Close()); err != nil {
		return nil, err
	}
	o.wal.ClusterID, o.wal.MemberID = f.clusterID, f.memberID
	log, err := wal.Create(o.wal, index, term)
	if err != nil {
		return nil, err
	}
	if err := log.Close(); err != nil {
		return nil, err
	}
	id.Complete = true
	return id, writeIdentity(dir, id)
}

// removeSegments empties the log's directory but for the lock, which is held.
func removeSegments(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return syncDir(dir)
}
