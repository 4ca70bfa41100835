package coterie

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coteriedb/coterie/replica"
)

// listTree lists what is below a directory.
func listTree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			paths = append(paths, rel)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return paths
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func TestStaging(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before      []string // directories
		data, log   string
		settle      bool
		meanwhile   string // a file that comes into being while something is made
		want        []string
		settleFails bool
	}{
		{name: "new directory", data: "a/data", settle: true, want: []string{"a", "a/data", "a/data/engine", "a/data/identity.json"}},
		{name: "given up", data: "a/data", want: nil},
		{name: "empty directory", before: []string{"data"}, data: "data", settle: true, want: []string{"data", "data/engine", "data/identity.json"}},
		{name: "empty directory, given up", before: []string{"data"}, data: "data", want: []string{"data"}},
		{name: "log apart", data: "data", log: "log", settle: true, want: []string{"data", "data/engine", "data/identity.json", "log", "log/1.wal"}},
		{name: "log apart, given up", before: []string{"log"}, data: "data", log: "log", want: []string{"log"}},
		{name: "log inside", data: "data", log: "data/mine", settle: true,
			want: []string{"data", "data/engine", "data/identity.json", "data/mine", "data/mine/1.wal"}},
		{name: "in the way", data: "data", log: "log", settle: true, meanwhile: "data/engine", settleFails: true, want: []string{"data", "data/engine"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			at := func(name string) string {
				if name == "" {
					return ""
				}
				return filepath.Join(root, name)
			}
			for _, dir := range tt.before {
				if err := os.Mkdir(at(dir), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			s, err := stage(at(tt.data), at(tt.log))
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, s.path("engine"))
			writeFile(t, s.path("identity.json"))
			if tt.log != "" {
				logDir, err := s.logPath("wal")
				if err != nil {
					t.Fatal(err)
				}
				writeFile(t, filepath.Join(logDir, "1.wal"))
			}
			if tt.meanwhile != "" {
				writeFile(t, at(tt.meanwhile))
			}
			if tt.settle {
				if err := s.settle("identity.json"); (err != nil) != tt.settleFails {
					t.Fatal(err)
				}
			}
			err = s.discard()
			if err != nil && tt.meanwhile == "" {
				t.Fatal(err)
			}
			if got := listTree(t, root); !slices.Equal(got, tt.want) {
				t.Errorf("left %q, want %q", got, tt.want)
			}
		})
	}
}

func TestStagingRefuses(t *testing.T) {
	for _, inside := range []string{"data/file", "log/file", "data/" + replica.StagingDir + "/engine"} {
		root := t.TempDir()
		writeFile(t, filepath.Join(root, inside))
		before := listTree(t, root)
		if _, err := stage(filepath.Join(root, "data"), filepath.Join(root, "log")); err == nil {
			t.Errorf("%s is not minded", inside)
		}
		if got := listTree(t, root); !slices.Equal(got, before) {
			t.Errorf("left %q, want %q", got, before)
		}
	}
	if _, err := stage("/proc/nowhere/data", ""); err == nil {
		t.Error("a directory was made where none can be")
	}
}

// A directory is named with a slash at its end, and does not exist.
func TestRestoreToANameWithASlash(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data") + string(os.PathSeparator)
	if _, err := Restore(t.Context(), RestoreConfig{Snapshot: snapshotOf(t), Cluster: &three, DataDir: dir}); err != nil {
		t.Error(err)
	}
}
