package discovery_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/coteriedb/coterie/tests/target"
)

const token = "6c007a14875d53d9bf0ef5a6fc0257c817f0fb83"

// TestDiscovery has members of either kind find each other through a service of either kind. Etcd's through etcd's are
// left out.
func TestDiscovery(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	bin := t.TempDir()
	binaries := make(map[target.Kind]string)
	for _, kind := range []target.Kind{target.KindCoterie, target.KindEtcd} {
		binary, err := target.BuildBinary(ctx, kind, bin)
		if err != nil {
			t.Fatal(err)
		}
		binaries[kind] = binary
	}
	services := map[target.Kind]func(dir string) (target.Server, error){
		target.KindEtcd: func(dir string) (target.Server, error) { return target.StartEtcd(ctx, target.Config{Dir: dir}) },
		target.KindCoterie: func(dir string) (target.Server, error) {
			return target.StartCoterie(ctx, binaries[target.KindCoterie], target.Config{Dir: dir})
		},
	}
	for _, tt := range []struct{ members, service target.Kind }{
		{target.KindCoterie, target.KindEtcd},
		{target.KindCoterie, target.KindCoterie},
		{target.KindEtcd, target.KindCoterie},
	} {
		t.Run(string(tt.members)+" at "+string(tt.service), func(t *testing.T) {
			dir := t.TempDir()
			service, err := services[tt.service](filepath.Join(dir, "service"))
			if err != nil {
				t.Fatal(err)
			}
			defer service.Close()
			announce(ctx, t, service.Endpoint())
			cluster, err := target.StartCluster(ctx, target.ClusterConfig{
				Binary: binaries[tt.members], Kind: tt.members, Dir: filepath.Join(dir, "members"), Size: 3,
				Flags: []string{"--initial-cluster=", "--discovery-token", token, "--discovery-endpoints", service.Endpoint()},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			checkMembers(ctx, t, cluster)
		})
	}
}

// announce says that there will be three members.
func announce(ctx context.Context, t *testing.T, endpoint string) {
	t.Helper()
	client := connect(t, endpoint)
	defer client.Close()
	if _, err := client.Put(ctx, "/_etcd/registry/"+token+"/_config/size", "3"); err != nil {
		t.Fatal(err)
	}
}

// checkMembers requires that all members are in one cluster, with their names and URLs.
func checkMembers(ctx context.Context, t *testing.T, cluster *target.Cluster) {
	t.Helper()
	client := connect(t, cluster.Endpoints()...)
	defer client.Close()
	list, err := client.MemberList(ctx)
	if err != nil {
		t.Fatal(err)
	}
	urls := make(map[string]string)
	for _, m := range list.Members {
		if len(m.PeerURLs) != 1 {
			t.Errorf("%s has the peer URLs %q", m.Name, m.PeerURLs)
			continue
		}
		urls[m.Name] = m.PeerURLs[0]
	}
	for i := range cluster.Size() {
		if got := urls[cluster.Name(i)]; got != cluster.PeerURL(i) {
			t.Errorf("%s has the peer URL %q, want %q", cluster.Name(i), got, cluster.PeerURL(i))
		}
		status, err := client.Status(ctx, cluster.Endpoint(i))
		if err != nil {
			t.Fatal(err)
		}
		if status.Header.ClusterId != list.Header.ClusterId || status.Leader == 0 {
			t.Errorf("%s is in the cluster %x with the leader %x, the first in %x", cluster.Name(i), status.Header.ClusterId, status.Leader, list.Header.ClusterId)
		}
	}
}

func connect(t *testing.T, endpoints ...string) *clientv3.Client {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}
