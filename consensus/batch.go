package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A raft entry holds a batch: the commands that arrived while the batch before
// was being written.
//
//	version  1 byte   1
//	proposer 8 bytes  big-endian; drawn at random by each start of a member
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
