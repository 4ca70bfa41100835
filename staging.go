package coterie

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/coteriedb/coterie/replica"
)

// staging makes the contents of a data directory, and of a log directory beside
// it if there is one, so that they are there whole or not at all. It makes them in
// directories inside those where they belong: each may be the root of a file
// system of its own.
type staging struct {
	dirs  []string // of data, of the log
	made  []string // directories that did not exist, outer ones first
	moved []string // what has been moved to where it belongs
	done  bool
}

// stage refuses directories that have anything in them.
func stage(dataDir, logDir string) (_ *staging, err error) {
	s := &staging{dirs: []string{filepath.Clean(dataDir)}}
	if logDir != "" {
		s.dirs = append(s.dirs, filepath.Clean(logDir))
	}
	for _, dir := range s.dirs { // before anything is made
		if err := refuseContents(dir); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.discard())
		}
	}()
	for i, dir := range s.dirs {
		if err := s.makeAll(dir); err != nil {
			return nil, err
		}
		if err := s.makeOne(s.in(i, "")); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func refuseContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data-dir %q not empty or could not be read: %w", dir, err)
	}
	for _, e := range entries {
		switch e.Name() {
		case replica.LockFile, "lost+found": // a server that was refused, and a new file system
		case replica.StagingDir:
			return fmt.Errorf("%s is in use by another restore, or one that was interrupted has left it: remove it in that case", filepath.Join(dir, replica.StagingDir))
		default:
			return fmt.Errorf("data-dir %q not empty or could not be read: it holds %s; choose another directory, or move that away", dir, e.Name())
		}
	}
	return nil
}

// makeAll makes a directory and those above it.
func (s *staging) makeAll(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := s.makeAll(parent); err != nil {
			return err
		}
	}
	return s.makeOne(dir)
}

func (s *staging) makeOne(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	s.made = append(s.made, dir)
	return replica.SyncDir(vfs.Default, filepath.Dir(dir))
}

func (s *staging) in(i int, name string) string {
	return filepath.Join(s.dirs[i], replica.StagingDir, name)
}

// path is where something that belongs in the data directory is made.
func (s *staging) path(name string) string { return s.in(0, name) }

// logPath is where the log is made, in a directory of the name if it has none of
// its own.
func (s *staging) logPath(name string) (string, error) {
	if len(s.dirs) > 1 {
		return s.in(1, ""), nil
	}
	return s.path(name), os.MkdirAll(s.path(name), 0o700)
}

// settle moves what was made to where it belongs, durably. What is named last
// comes last.
func (s *staging) settle(last string) error {
	for i, dir := range slices.Backward(s.dirs) {
		entries, err := os.ReadDir(s.in(i, ""))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Name() != last {
				if err := s.move(i, e.Name()); err != nil {
					return err
				}
			}
		}
		if err := replica.SyncDir(vfs.Default, dir); err != nil {
			return err
		}
	}
	if err := s.move(0, last); err != nil {
		return err
	}
	s.done = true
	var errs []error
	for i, dir := range s.dirs {
		errs = append(errs, os.Remove(s.in(i, "")), replica.SyncDir(vfs.Default, dir))
	}
	return errors.Join(errs...)
}

func (s *staging) move(i int, name string) error {
	to := filepath.Join(s.dirs[i], name)
	if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s has come into being meanwhile", to), err)
	}
	if err := os.Rename(s.in(i, name), to); err != nil {
		return err
	}
	s.moved = append(s.moved, to)
	return nil
}

// discard removes what was made, unless it has settled.
func (s *staging) discard() error {
	if s.done {
		return nil
	}
	var errs []error
	for _, path := range s.moved {
		errs = append(errs, os.RemoveAll(path))
	}
	for _, dir := range slices.Backward(s.made) {
		if filepath.Base(dir) == replica.StagingDir {
			errs = append(errs, os.RemoveAll(dir))
			continue
		}
		errs = append(errs, os.Remove(dir)) // which leaves one that somebody else has begun to use
	}
	return errors.Join(errs...)
}
