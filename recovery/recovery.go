// Package recovery moves whole states: out of etcd's snapshot files and data
// directories into the engine of a member, and out of a machine into a data
// directory on which etcd starts.
//
// It promises that revisions, history, leases, users, roles, alarms and
// compactions stay as they are, that whoever reads the same source gets the same
// state, and that a source is never changed. What a crash has left in etcd's log
// alone is applied by the machine, which reads the same commands.
//
// It knows neither where a member keeps its data nor who it will be: the root
// package says so.
package recovery

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.uber.org/zap"

	"github.com/coteriedb/coterie/machine"
	"github.com/coteriedb/coterie/machine/auth"
	"github.com/coteriedb/coterie/machine/mvcc"
	"github.com/coteriedb/coterie/machine/watch"
	"github.com/coteriedb/coterie/storage/engine"
	"github.com/coteriedb/coterie/storage/etcdfile"
	"github.com/coteriedb/coterie/storage/etcdlog"
)

// ErrAuthEnabled refuses a state in which authentication is enabled: no release
// of Coterie enforces it yet, so what it protects would lie open.
var ErrAuthEnabled = errors.New("authentication is enabled in it, and this version of Coterie does not enforce it: " +
	"everybody who reaches the server could read and write everything; disable authentication in etcd first, or say --disable-auth to carry on without it")

// The values of Options.Uncommitted.
const (
	UncommittedRefuse = ""
	UncommittedKeep   = "keep"
	UncommittedDrop   = "drop"
)

// Options says how a source is read.
type Options struct {
	// Unverified reads a snapshot file without looking at its checksum, as is
	// needed for the database of a data directory.
	Unverified bool
	// DisableAuth reads a state in which authentication is enabled as if it had
	// been disabled last.
	DisableAuth bool
	// Uncommitted says what becomes of entries at the end of the log of which this
	// member of several did not know whether the others have them.
	Uncommitted string
	// OnProgress, if set, is told of how many bytes of the database are read.
	OnProgress func(done, total int64)
	Logger     *zap.Logger
}

// Source is an open state of etcd's.
type Source struct {
	o        Options
	file     *etcdfile.File
	contents *etcdfile.Contents
	tail     []machine.Entry // to be applied on top

	// ClusterID and MemberID say whose state it is; 0 for a snapshot file.
	ClusterID, MemberID uint64
}

// OpenSnapshot opens a snapshot file.
func OpenSnapshot(ctx context.Context, path string, o Options) (*Source, error) {
	s := &Source{o: o}
	if err := s.open(ctx, path); err != nil {
		return nil, fmt.Errorf("read the snapshot: %w", err)
	}
	// Whose state it was is not in the file, and is not to matter.
	s.contents.Members, s.contents.RemovedMembers = nil, nil
	return s, s.judgeAuth(path)
}

// open opens a database or a snapshot file instead of the one before.
func (s *Source) open(ctx context.Context, path string) error {
	if s.file != nil {
		if err := s.file.Close(); err != nil {
			return err
		}
		s.file = nil
	}
	f, err := etcdfile.Open(ctx, path, etcdfile.ReadOptions{Unverified: s.o.Unverified, OnProgress: s.o.OnProgress})
	if err != nil {
		return err
	}
	c, err := f.Contents(ctx)
	if err == nil {
		err = c.CheckVersion(machine.APIVersion)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	s.file, s.contents = f, c
	return nil
}

// Close closes the files.
func (s *Source) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// judgeAuth closes and refuses a source with authentication that nobody would
// enforce.
func (s *Source) judgeAuth(path string) error {
	enables := slices.ContainsFunc(s.tail, enablesAuth)
	if !s.contents.AuthEnabled && !enables {
		return nil
	}
	if !s.o.DisableAuth {
		return errors.Join(fmt.Errorf("%s: %w", path, ErrAuthEnabled), s.Close())
	}
	if len(s.tail) > 0 {
		// Each of them would have to be judged by the permissions of its time.
		return errors.Join(fmt.Errorf("%s: authentication is enabled in it, and its last %d entries are in the log alone: "+
			"start etcd on it once more and stop it in order, or take a snapshot", path, len(s.tail)), s.Close())
	}
	s.contents.AuthEnabled = false
	s.contents.AuthRevision++ // as disabling it does
	return nil
}

// OpenEtcd opens a data directory of etcd's, of which no etcd runs. The log is in
// walDir, or where etcd puts it if that is empty.
func OpenEtcd(ctx context.Context, dir, walDir string, o Options) (_ *Source, err error) {
	o.Unverified = true // a database has no checksum at its end
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	s := &Source{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("read %s: %w", dir, err), s.Close())
		}
	}()
	if walDir == "" {
		walDir = filepath.Join(dir, "member", "wal")
	}
	snapDir := filepath.Join(dir, "member", "snap")
	if _, err := os.Stat(filepath.Join(snapDir, "db")); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("it is no data directory of etcd: it has no member/snap/db")
	}
	if err := s.openDatabase(ctx, snapDir, walDir); err != nil {
		return nil, err
	}
	return s, s.judgeAuth(dir)
}

// openDatabase opens the database and reads those entries of the log that it does
// not have.
func (s *Source) openDatabase(ctx context.Context, snapDir, walDir string) error {
	if err := s.open(ctx, filepath.Join(snapDir, "db")); err != nil {
		return err
	}
	log, err := etcdlog.Read(ctx, walDir, s.contents.Index)
	if err != nil {
		return err
	}
	// A member that was sent a snapshot writes it down, then says so in the log, and
	// then makes it its database.
	if i, ok := newestSnapshot(log); ok && i > s.contents.Index {
		if err := s.open(ctx, filepath.Join(snapDir, fmt.Sprintf("%016x.snap.db", i))); err != nil {
			return fmt.Errorf("the database ends at entry %d and the log begins at a snapshot of entry %d: %w", s.contents.Index, i, err)
		}
		if log, err = etcdlog.Read(ctx, walDir, s.contents.Index); err != nil {
			return err
		}
	}
	if s.contents.Index > 0 && s.contents.Term == 0 {
		return errors.New("it was written by etcd 3.4 or an older one: upgrade to etcd 3.5 first")
	}
	s.ClusterID, s.MemberID = log.ClusterID, log.MemberID
	return s.takeTail(log)
}

// newestSnapshot is the newest one that is known to be committed.
func newestSnapshot(log *etcdlog.Log) (index uint64, ok bool) {
	for _, s := range slices.Backward(log.Snapshots) {
		if s.Index <= log.HardState.GetCommit() {
			return s.Index, true
		}
	}
	return 0, false
}

// takeTail judges and decodes the entries after those that the database has.
func (s *Source) takeTail(log *etcdlog.Log) error {
	applied := s.contents.Index
	if log.LastIndex < applied {
		return fmt.Errorf("the log ends at entry %d, but the database has entry %d: they do not belong together, or the log was cut; "+
			"the database alone can be restored as a snapshot file with --skip-hash-check", log.LastIndex, applied)
	}
	if !log.Continuous(applied) {
		return fmt.Errorf("the database ends at entry %d, but the log goes on with entry %d: they do not belong together", applied, log.Entries[0].GetIndex())
	}
	// Commit is not written each time it moves; what is applied was committed.
	commit := max(log.HardState.GetCommit(), applied)
	known := int(min(commit-applied, uint64(len(log.Entries))))
	var err error
	if s.tail, err = decodeAll(log.Entries[:known]); err != nil {
		return err
	}
	rest, err := decodeAll(log.Entries[known:])
	if err != nil || len(rest) == 0 {
		return err
	}
	// A member that is alone commits all that its log has when it starts.
	if !s.alone() {
		s.o.Logger.Warn("the log ends with entries that this member did not know to be committed", zap.Int("entries", len(rest)))
		switch s.o.Uncommitted {
		case UncommittedDrop:
			return nil
		case UncommittedRefuse:
			return fmt.Errorf("its log ends with %d entries of which this member did not know whether the others have them: "+
				"start the cluster once more and stop it in order when no client writes; or say --uncommitted=keep, which may keep writes that were not "+
				"acknowledged, or --uncommitted=drop, which may lose some that were", len(rest))
		}
	}
	s.tail = append(s.tail, rest...)
	return nil
}

// alone reports whether the member is the only one that votes, after the tail.
func (s *Source) alone() bool {
	voters := make(map[uint64]bool)
	for _, m := range s.contents.Members {
		voters[m.ID] = !m.IsLearner
	}
	for _, e := range s.tail {
		if c := e.Change; c != nil {
			switch c.Kind {
			case machine.AddMember:
				voters[c.Member.ID] = !c.Member.IsLearner
			case machine.PromoteMember:
				voters[c.Member.ID] = true
			case machine.RemoveMember:
				delete(voters, c.Member.ID)
			}
		}
	}
	n := 0
	for _, votes := range voters {
		if votes {
			n++
		}
	}
	return n == 1 && voters[s.MemberID]
}

// Target says what Fill makes of a state.
type Target struct {
	// Index and Term are of the entry after which the member's log begins.
	Index, Term uint64
	// Members, if not nil, are those of a new cluster that gets the state.
	Members []machine.Member
	// Bump raises the revision, and has all history before count as compacted.
	Bump uint64
}

// Fill writes the state into an empty engine, durably, and returns its members.
// It can be called once.
func (s *Source) Fill(ctx context.Context, eng *engine.Engine, t Target) ([]machine.Member, error) {
	if err := machine.Import(ctx, eng, s.contents, machine.ImportOptions{Bump: t.Bump}); err != nil {
		return nil, err
	}
	members, err := s.replay(ctx, eng)
	if err != nil {
		return nil, err
	}
	if t.Members != nil {
		members = t.Members
	}
	return members, machine.Rebase(eng, t.Index, t.Term, t.Members)
}

// entriesPerApply bounds a batch of the engine, and is how often Fill looks
// whether it is still wanted.
const entriesPerApply = 100

// replay applies the tail and returns the members after it.
func (s *Source) replay(ctx context.Context, eng *engine.Engine) ([]machine.Member, error) {
	logger := s.o.Logger
	if logger == nil {
		logger = zap.NewNop()
	}
	m, err := machine.Open(machine.Options{
		Engine: eng,
		KV:     mvcc.Options{Logger: logger},
		Watch:  watch.Options{Logger: logger},
		Auth:   auth.Options{Logger: logger},
		Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	for entries := range slices.Chunk(s.tail, entriesPerApply) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i := range entries { // what changes nothing is left out
			entries[i].Index = m.Applied() + 1 + uint64(i)
		}
		results, err := m.Apply(entries)
		if err != nil {
			return nil, err
		}
		if err := await(ctx, results); err != nil {
			return nil, err
		}
	}
	return m.Members.List(), nil
}

// await returns when what the results go on with in the background is done, so
// that equal sources give equal engines.
func await(ctx context.Context, results []machine.Result) error {
	for _, r := range results {
		if r.Done == nil {
			continue
		}
		select {
		case <-r.Done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// WriteEtcd makes a data directory of etcd's in dir, which exists and is empty,
// with the log in walDir, which does as well. The members are those of start.
func WriteEtcd(ctx context.Context, dir, walDir string, c etcdfile.Contents, start etcdlog.Start) error {
	snap := filepath.Join(dir, "member", "snap")
	if err := os.MkdirAll(snap, 0o700); err != nil {
		return err
	}
	c.Index, c.Term = start.Position()
	c.Members = nil
	for _, m := range start.Members {
		c.Members = append(c.Members, etcdfile.Member(m))
	}
	if err := etcdfile.WriteDatabase(ctx, filepath.Join(snap, "db"), c); err != nil {
		return err
	}
	for _, d := range []string{snap, filepath.Dir(snap), dir} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	return etcdlog.Write(walDir, start)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
