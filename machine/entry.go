package machine

import "google.golang.org/protobuf/proto"

// Entry is one committed raft entry, as the machine sees it.
type Entry struct {
	Index, Term uint64
	// Commands are the encoded InternalRaftRequests of the entry, in order;
	// none for an entry that only moves the applied index.
	Commands [][]byte
	// Change is the change of the membership that the entry is, if it is one.
	// Such an entry has no commands, and one result.
	Change *Change
	// Unasked says that nobody waits for responses here: results have none then, only errors. What transactions read can be a thousand times
	// as long as they are.
	Unasked bool
}

// Result is the outcome of one command or change: the response that the client gets, or
// the error. It is the same on every member.
type Result struct {
	Response proto.Message
	Err      error
	// Done, if not nil, is closed when work that the command has started in
	// the background is done, such as a physical compaction.
	Done <-chan struct{}
}
