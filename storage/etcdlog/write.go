package etcdlog

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Member is a member as etcd's log has it.
type Member struct {
	ID         uint64   `json:"id"`
	PeerURLs   []string `json:"peerURLs"`
	IsLearner  bool     `json:"isLearner,omitempty"`
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Start says with what a log begins: a state in which the members have joined
// one after the other, each by an entry of its own, and nothing else was done.
type Start struct {
	ClusterID, MemberID uint64
	Members             []Member // at least the one with MemberID
}

// firstTerm is the term of the entries with which a log begins.
const firstTerm = 1

// Position returns index and term of the last entry of the start. The database
// beside the log must have them as its own.
func (s *Start) Position() (index, term uint64) { return uint64(len(s.Members)), firstTerm }

// Write makes the log in dir, which exists and is empty, and makes it durable.
func Write(dir string, s Start) error {
	w := &writer{}
	if err := w.start(&s); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, fileName(0, 0)), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	_, err = f.Write(w.buf)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func (w *writer) start(s *Start) error {
	index, term := s.Position()
	w.record(kindCRC, nil)
	w.record(kindMetadata, appendNumbers(nil, s.MemberID, s.ClusterID))
	w.record(kindSnapshot, appendNumbers(nil, 0, 0))
	conf := &raftpb.ConfState{}
	for i, m := range s.Members {
		kind := raftpb.ConfChangeAddNode
		if m.IsLearner {
			kind = raftpb.ConfChangeAddLearnerNode
			conf.Learners = append(conf.Learners, m.ID)
		} else {
			conf.Voters = append(conf.Voters, m.ID)
		}
		described, err := json.Marshal(m)
		if err != nil {
			return err
		}
		change, err := proto.Marshal(&raftpb.ConfChange{Type: kind.Enum(), NodeId: &m.ID, Context: described})
		if err != nil {
			return err
		}
		at := uint64(i + 1)
		if err := w.message(kindEntry, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Term: &term, Index: &at, Data: change}); err != nil {
			return err
		}
	}
	// Nobody has been voted for, so the first election is free.
	if err := w.message(kindState, &raftpb.HardState{Term: &term, Vote: new(uint64), Commit: &index}); err != nil {
		return err
	}
	configured, err := proto.Marshal(conf)
	if err != nil {
		return err
	}
	snapshot := protowire.AppendTag(appendNumbers(nil, index, term), 3, protowire.BytesType)
	w.record(kindSnapshot, protowire.AppendBytes(snapshot, configured))
	return nil
}

// writer makes records in memory.
type writer struct {
	buf []byte
	crc uint32
}

func (w *writer) message(kind uint64, m proto.Message) error {
	data, err := proto.Marshal(m)
	if err == nil {
		w.record(kind, data)
	}
	return err
}

func (w *writer) record(kind uint64, data []byte) {
	w.crc = crc32.Update(w.crc, crcTable, data)
	r := appendNumbers(nil, kind, uint64(w.crc))
	if data != nil {
		r = protowire.AppendTag(r, 3, protowire.BytesType)
		r = protowire.AppendBytes(r, data)
	}
	field := uint64(len(r))
	if padding := (8 - len(r)%8) % 8; padding > 0 {
		field |= uint64(0x80|padding) << 56
		r = append(r, make([]byte, padding)...)
	}
	w.buf = binary.LittleEndian.AppendUint64(w.buf, field)
	w.buf = append(w.buf, r...)
}

// appendNumbers appends a message whose fields from 1 on are numbers. They are
// written even if 0, for etcd tells 0 from absent.
func appendNumbers(b []byte, fields ...uint64) []byte {
	for i, v := range fields {
		b = protowire.AppendTag(b, protowire.Number(i+1), protowire.VarintType)
		b = protowire.AppendVarint(b, v)
	}
	return b
}
