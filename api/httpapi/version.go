package httpapi

import (
	"encoding/json"
	"net/http"
	"os"
	"runtime"

	"github.com/coteriedb/coterie/api"
)

// NewVersion returns the handler of /version, which other members ask too.
func NewVersion(own string) http.Handler { return only(http.MethodGet, version(own)) }

// version answers with the API's version in etcd's fields and the server's own beside them.
func version(own string) http.HandlerFunc {
	body, err := json.Marshal(struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
		Storage string `json:"storage"`
		Own     string `json:"coterie"`
	}{api.Version(), api.ClusterVersion(), api.ClusterVersion(), own})
	if err != nil {
		panic(err) // four strings
	}
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}
}

// vars answers what etcd publishes as expvar: the command line, memory statistics, and raft's
// state. Package expvar itself would be shared by all members in the process.
func vars(n Node) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		_ = json.NewEncoder(w).Encode(map[string]any{ // fails only when the client is gone
			"cmdline":     os.Args,
			"memstats":    mem,
			"raft.status": n.Status(),
		})
	}
}
