package coterie

import (
	"crypto/sha1"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/coteriedb/coterie/machine"
)

// memberID computes the id of a member of a statically configured cluster as
// etcd does: from its peer URLs and the cluster's token.
func memberID(peerURLs []string, token string) uint64 {
	urls := slices.Sorted(slices.Values(peerURLs))
	sum := sha1.Sum([]byte(strings.Join(urls, "") + token))
	return binary.BigEndian.Uint64(sum[:])
}

// clusterID computes the id of a cluster as etcd does: from the ids of its
// first members.
func clusterID(members []machine.Member) uint64 {
	ids := make([]uint64, 0, len(members))
	for _, m := range members {
		ids = append(ids, m.ID)
	}
	slices.Sort(ids)
	var b []byte
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	sum := sha1.Sum(b)
	return binary.BigEndian.Uint64(sum[:])
}
