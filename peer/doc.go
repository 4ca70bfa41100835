// Package peer carries what the members of a cluster say to one another: raft's
// messages, snapshots, and small calls.
//
// It owns the connections between members, both those it dials and those it is
// dialled on, and the protocol on them; DESIGN.md has it byte by byte. It
// promises that Send never blocks, that messages of one stream arrive in the
// order in which they were sent, each once or not at all, that what arrives is
// what was sent (CRC-32C), and that no member can make another's memory grow
// without bound. It does not promise delivery: raft sends again, and is told by
// Unreachable that it should.
//
// It knows raft's messages but not what raft does with them, and a snapshot as
// files in a directory but not what is in them. It must not know consensus, the
// machine or storage.
package peer
