//go:build !canary

package sim

import (
	pb "go.etcd.io/raft/v3/raftpb"

	"github.com/coteriedb/coterie/machine"
)

const canarySkipSync = false

func canaryDeliver(*pb.Message) bool { return false }

func canaryApply(entries []machine.Entry) []machine.Entry { return entries }
