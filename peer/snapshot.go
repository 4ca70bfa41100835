package peer

import (
	"context"
	"net/http"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// maxSending bounds the snapshots being sent, over all members.
const maxSending = 2

// Snapshot is a copy of the state at a moment, in files.
type Snapshot struct {
	Metadata *raftpb.SnapshotMetadata
	Dir      string
	Files    []string // names in Dir
	// Release lets go of the copy. It is called once, when it was sent or not.
	Release func()
}

// Snapshots makes and takes copies of the state.
type Snapshots interface {
	// Take makes a consistent copy of the state of a moment.
	Take(ctx context.Context) (*Snapshot, error)
	// Begin returns an empty directory to receive a snapshot in. One is received
	// at a time; another is refused.
	Begin(meta *raftpb.SnapshotMetadata) (dir string, err error)
	// Received is called when all files are in dir, synced and verified; m is
	// the MsgSnap with the metadata of what was received. It returns when raft
	// has been given m. If anything fails before, Aborted is called instead.
	Received(ctx context.Context, m *raftpb.Message, dir string) error
	Aborted(dir string)
}

var (
	noDeadline = time.Time{}
	past       = time.Unix(1, 0)
)

func (t *Transport) deadline() time.Time { return time.Now().Add(t.cfg.ReadTimeout) }

func (t *Transport) startSnapshot(r *remote, m *raftpb.Message) { t.reports.snapshotFailed(m.GetTo()) }

func (t *Transport) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	(&refusal{http.StatusServiceUnavailable, "this member takes no snapshots"}).write(w, t.cfg.ClusterID)
}
