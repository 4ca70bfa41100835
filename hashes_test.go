package coterie

import (
	"encoding/json"
	"testing"

	"github.com/coteriedb/coterie/guard"
)

// FuzzHashCall answers calls of other members for a hash. An answer is one that they can read, of a revision that there is.
func FuzzHashCall(f *testing.F) {
	n := openNode(f, testConfig(f))
	f.Cleanup(func() { must(f, n.Close()) })
	in, err := json.Marshal(hashRequest{1})
	must(f, err)
	f.Add(in)
	f.Add([]byte(`{"revision":-9223372036854775808}`))
	f.Add([]byte(`{"revision":9223372036854775807}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := hashes{n}.serve(t.Context(), in)
		if err != nil {
			return
		}
		var r hashRequest
		var h guard.Hash
		must(t, json.Unmarshal(in, &r))
		must(t, json.Unmarshal(out, &h))
		if h.HashRevision > h.Revision || r.Revision > 0 && h.HashRevision != r.Revision {
			t.Errorf("the answer to %s is %+v", in, h)
		}
	})
}
