package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The head of a snapshot says what follows it. It is a frame with the payload
//
//	message uvarint length, raftpb.Message: MsgSnap, with metadata and no data
//	files   uvarint count, and for each
//	        uvarint length, name; uvarint size
//
// The files follow in this order.
const (
	maxSnapshotHead  = 64 << 20
	maxSnapshotFiles = 1 << 20
	maxFileName      = 255
)

type snapshotHead struct {
	message *raftpb.Message
	files   []File
}

// newSnapshotHead describes a snapshot that is sent in answer to m.
func newSnapshotHead(m *raftpb.Message, s *Snapshot) (*snapshotHead, error) {
	h := &snapshotHead{message: proto.CloneOf(m)}
	h.message.Snapshot = &raftpb.Snapshot{Metadata: s.Metadata}
	for _, name := range s.Files {
		fi, err := os.Stat(filepath.Join(s.Dir, name))
		if err != nil {
			return nil, fmt.Errorf("a snapshot's file: %w", err)
		}
		h.files = append(h.files, File{name, fi.Size()})
	}
	return h, h.check()
}

// bytes is how long the files and their checksums are; check has seen that it
// is a number.
func (h *snapshotHead) bytes() int64 {
	n := int64(0)
	for _, f := range h.files {
		n += f.Size + fileChecksumLen
	}
	return n
}

// check refuses a head that no member may send.
func (h *snapshotHead) check() error {
	m := h.message
	if m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() == 0 {
		return errors.New("a snapshot has no metadata")
	}
	if len(h.files) > maxSnapshotFiles {
		return tooManyFiles(uint64(len(h.files)))
	}
	seen := make(map[string]bool, len(h.files))
	left := int64(math.MaxInt64 / 2)
	for _, f := range h.files {
		if err := checkFileName(f.Name); err != nil {
			return err
		}
		if seen[f.Name] {
			return fmt.Errorf("a snapshot names the file %q twice", f.Name)
		}
		seen[f.Name] = true
		if left -= f.Size + fileChecksumLen; f.Size < 0 || left < 0 {
			return errors.New("a snapshot is longer than can be")
		}
	}
	return nil
}

// checkFileName refuses a name that could lead out of a directory.
func checkFileName(name string) error {
	if name == "" || len(name) > maxFileName || name == "." || name == ".." || strings.ContainsAny(name, "/\\:\x00") {
		return fmt.Errorf("a snapshot has a file named %q, which cannot be one", truncate(name, maxFileName))
	}
	return nil
}

// frame encodes the head.
func (h *snapshotHead) frame() ([]byte, error) {
	m, err := proto.Marshal(h.message)
	if err != nil {
		return nil, fmt.Errorf("encode a snapshot's head: %w", err)
	}
	b := beginFrame(nil, frameSnapshot)
	b = binary.AppendUvarint(b, uint64(len(m)))
	b = append(b, m...)
	b = binary.AppendUvarint(b, uint64(len(h.files)))
	for _, f := range h.files {
		b = binary.AppendUvarint(b, uint64(len(f.Name)))
		b = append(b, f.Name...)
		b = binary.AppendUvarint(b, uint64(f.Size))
	}
	if len(b) > maxSnapshotHead {
		return nil, errors.New("a snapshot has too many files")
	}
	sealFrame(b)
	return b, nil
}

func decodeSnapshotHead(b []byte) (*snapshotHead, error) {
	d := headDecoder{b: b}
	h := &snapshotHead{message: &raftpb.Message{}}
	message := d.bytes()
	n := d.uvarint()
	if n > maxSnapshotFiles {
		return nil, tooManyFiles(n)
	}
	for ; n > 0 && d.err == nil; n-- {
		h.files = append(h.files, File{string(d.bytes()), int64(min(d.uvarint(), math.MaxInt64))})
	}
	if d.err != nil || len(d.b) > 0 {
		return nil, errors.New("a snapshot's head is cut short or too long")
	}
	if err := proto.Unmarshal(message, h.message); err != nil {
		return nil, fmt.Errorf("decode a snapshot's head: %w", err)
	}
	return h, h.check()
}

func tooManyFiles(n uint64) error {
	return fmt.Errorf("a snapshot has %d files; at most %d are sent", n, maxSnapshotFiles)
}

type headDecoder struct {
	b   []byte
	err error
}

func (d *headDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.err, d.b = errors.New("cut short"), nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *headDecoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.err, d.b = errors.New("cut short"), nil
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}
