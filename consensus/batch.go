package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/coteriedb/coterie/machine"
)

// A raft entry holds a batch: the commands that arrived while the batch before
// was being written.
//
//	version  1 byte   1
//	proposer 8 bytes  big-endian; drawn at random by each start of a member, and one
//	                  more with each snapshot that it gets
//	sequence 8 bytes  big-endian; of the proposer's batches
//	commands          each a uvarint length and as many bytes
//
// The pair of proposer and sequence finds the waiting callers again, one
// look-up for the whole batch.
const (
	batchVersion   = 1
	batchHeaderLen = 17
)

func appendBatchHeader(b []byte, proposer, sequence uint64) []byte {
	b = append(b, batchVersion)
	b = binary.BigEndian.AppendUint64(b, proposer)
	return binary.BigEndian.AppendUint64(b, sequence)
}

func appendCommand(b, command []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(command)))
	return append(b, command...)
}

// batchOrigin returns proposer and sequence of an entry's data that is at
// least batchHeaderLen long.
func batchOrigin(b []byte) (proposer, sequence uint64) {
	return binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])
}

// entryOrigin returns proposer and sequence of a committed entry that has them.
func entryOrigin(e *pb.Entry) (proposer, sequence uint64, ok bool) {
	b := e.Data
	if e.GetType() == pb.EntryConfChange {
		cc := &pb.ConfChange{}
		if proto.Unmarshal(b, cc) != nil {
			return 0, 0, false // the machine's goroutine will say so
		}
		b = cc.Context
	}
	if len(b) < batchHeaderLen {
		return 0, 0, false // a new leader's
	}
	proposer, sequence = batchOrigin(b)
	return proposer, sequence, true
}

// A change of the membership is an entry of its own, of raft's type for that.
// Its context is a batch of one command, the change as the machine reads it.

func encodeChange(c *machine.Change, proposer, sequence uint64) ([]byte, error) {
	cc := &pb.ConfChange{NodeId: &c.Member.ID}
	switch {
	case c.Kind == machine.AddMember && c.Member.IsLearner:
		cc.Type = pb.ConfChangeAddLearnerNode.Enum()
	case c.Kind == machine.AddMember, c.Kind == machine.PromoteMember:
		cc.Type = pb.ConfChangeAddNode.Enum()
	case c.Kind == machine.RemoveMember:
		cc.Type = pb.ConfChangeRemoveNode.Enum()
	case c.Kind == machine.UpdateMember:
		cc.Type = pb.ConfChangeUpdateNode.Enum()
	default:
		return nil, fmt.Errorf("consensus: unknown change of the membership %q", c.Kind)
	}
	cc.Context = appendCommand(appendBatchHeader(nil, proposer, sequence), c.Encode())
	return proto.Marshal(cc)
}

// membershipChange returns what raft takes an entry for, nil if it is for commands.
func membershipChange(e *pb.Entry) (*pb.ConfChange, error) {
	switch e.GetType() {
	case pb.EntryNormal:
		return nil, nil
	case pb.EntryConfChange:
		cc := &pb.ConfChange{}
		return cc, proto.Unmarshal(e.Data, cc)
	}
	return nil, fmt.Errorf("consensus: entries of type %v are unknown", e.GetType())
}

func decodeChange(data []byte) (*pb.ConfChange, *machine.Change, error) {
	cc := &pb.ConfChange{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return nil, nil, fmt.Errorf("undecodable change of the membership: %w", err)
	}
	commands, err := decodeBatch(cc.Context)
	if err != nil {
		return nil, nil, err
	}
	if len(commands) != 1 {
		return nil, nil, fmt.Errorf("%d changes of the membership in one entry", len(commands))
	}
	c, err := machine.DecodeChange(commands[0])
	return cc, c, err
}

var errShortBatch = errors.New("batch is cut short")

// decodeBatch splits an entry's data. The commands share its bytes.
func decodeBatch(b []byte) (commands [][]byte, err error) {
	if len(b) < batchHeaderLen {
		return nil, errShortBatch
	}
	if b[0] != batchVersion {
		return nil, fmt.Errorf("batch has format version %d, this binary reads %d", b[0], batchVersion)
	}
	for b = b[batchHeaderLen:]; len(b) > 0; {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, errShortBatch
		}
		end := w + int(n)
		commands = append(commands, b[w:end:end])
		b = b[end:]
	}
	return commands, nil
}
