package replica

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Format is the version of the layout of a data directory and of every
// format in it. Its description is docs/format.md.
const Format = 2

// The state of the first cluster: a member begins as if an entry with this
// index and term had made its members. The log begins after it, so a member
// that joins later without that state cannot be fed from the log alone.
const (
	FirstIndex = 1
	FirstTerm  = 1
)

// Names in a data directory.
const (
	IdentityFile = "identity.json"
	LockFile     = "LOCK"
	EngineDir    = "engine"
	LogDir       = "wal"
	// StagingDir is where a restoration makes what belongs here.
	StagingDir = "restore.tmp"
)

// Names of what comes and goes in a data directory. The next start removes what
// a crash has left of it.
const (
	incomingSuffix = ".incoming"       // behind an engine's directory, until the snapshot is complete
	outgoingFormat = "outgoing-%d.tmp" // checkpoints being sent
	// ExportPattern is of the files that snapshots for clients are sent from.
	ExportPattern = "snapshot-*.tmp"
)

var remains = []string{ExportPattern, "outgoing-*.tmp", EngineDir + "-*", EngineDir}

// Identity says whose a data directory is. It is written before anything else
// and again, with Complete, when all else is on disk: what is incomplete was
// never served and may be made anew.
type Identity struct {
	Format    int    `json:"format"`
	ClusterID string `json:"clusterID"` // hexadecimal
	MemberID  string `json:"memberID"`
	Complete  bool   `json:"complete"`
	// Engine is the directory of the engine: the first one's, or that of the last
	// snapshot that was installed. Empty means EngineDir.
	Engine string `json:"engine,omitempty"`
}

func (id *Identity) ids() (cluster, member uint64, err error) {
	if cluster, err = strconv.ParseUint(id.ClusterID, 16, 64); err != nil {
		return 0, 0, fmt.Errorf("%s is damaged: cluster id %q: %w", IdentityFile, id.ClusterID, err)
	}
	if member, err = strconv.ParseUint(id.MemberID, 16, 64); err != nil {
		return 0, 0, fmt.Errorf("%s is damaged: member id %q: %w", IdentityFile, id.MemberID, err)
	}
	return cluster, member, nil
}

// NewIdentity returns the identity of a directory that is not complete.
func NewIdentity(clusterID, memberID uint64) *Identity {
	return &Identity{Format: Format, ClusterID: strconv.FormatUint(clusterID, 16), MemberID: strconv.FormatUint(memberID, 16)}
}

// ReadIdentity returns nil if there is none. In what this version has written a name that it does not know is damage: were it
// instead of that of Complete, the directory would be taken for one that was never served.
func ReadIdentity(fs vfs.FS, dir string) (*Identity, error) {
	path := filepath.Join(dir, IdentityFile)
	f, err := fs.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	var id Identity
	if err := json.Unmarshal(b, &id); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w: bring it back from a copy, or restore this member from a snapshot", path, err)
	}
	if id.Format > Format {
		return nil, fmt.Errorf("%s has data format %d, this binary reads up to %d: start it with a newer version of Coterie", dir, id.Format, Format)
	}
	if id.Format < 1 {
		return nil, fmt.Errorf("%s is damaged: data format %d", path, id.Format)
	}
	if id.Format < Format {
		return nil, fmt.Errorf("%s has data format %d, of a version before the first release, this binary reads %d: "+
			"save a snapshot with that version and restore this member from it", dir, id.Format, Format)
	}
	// Only now that the format is known to be this one: a newer one has names of its own.
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&Identity{}); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w: bring it back from a copy, or restore this member from a snapshot", path, err)
	}
	return &id, nil
}

// WriteIdentity replaces the file as a whole.
func WriteIdentity(fs vfs.FS, dir string, id *Identity) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, IdentityFile)
	f, err := fs.Create(path+".tmp", vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(path+".tmp", path); err != nil {
		return err
	}
	return SyncDir(fs, dir)
}

// SyncDir makes the names in a directory durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
