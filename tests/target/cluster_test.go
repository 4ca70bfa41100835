package target

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"
)

var kind = flag.String("target.kind", string(KindEtcd), "whose binary the clusters run: coterie or etcd")

// TestCluster takes a cluster through everything that can be done to its members.
func TestCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	binary, err := BuildBinary(ctx, Kind(*kind), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := StartCluster(ctx, ClusterConfig{
		Binary: binary, Kind: Kind(*kind), Dir: t.TempDir(), Size: 3,
		Flags: []string{"--heartbeat-interval", "50", "--election-timeout", "500", "--strict-reconfig-check=false"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	steps := []struct {
		name string
		hurt func(int) error
		heal func(int) error
	}{
		{"kill", c.Kill, c.Start},
		{"pause", c.Pause, c.Resume},
		{"stop", c.Stop, c.Start},
	}
	for _, s := range steps {
		leader, err := c.Leader(ctx)
		if err != nil {
			t.Fatalf("before %s: %v", s.name, err)
		}
		if err := s.hurt(leader); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		next, err := c.Leader(ctx)
		if err != nil || next == leader {
			t.Fatalf("after %s of member %d: leader %d, %v", s.name, leader, next, err)
		}
		put(ctx, t, c, next, s.name)
		if err := s.heal(leader); err != nil {
			t.Fatalf("heal after %s: %v", s.name, err)
		}
		if err := c.WaitReady(ctx); err != nil {
			t.Fatalf("after %s: %v", s.name, err)
		}
		put(ctx, t, c, leader, s.name)
	}
	added, err := c.AddMember(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitReady(ctx, added); err != nil {
		t.Fatal(err)
	}
	if id, err := c.ID(ctx, added); err != nil || id == 0 {
		t.Errorf("id of the added member: %d, %v", id, err)
	}
	if rss, err := c.RSS(added); err != nil || rss < 1<<20 {
		t.Errorf("memory of the added member: %d, %v", rss, err)
	}
	if err := c.Failed(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.LogPath(added)); err != nil {
		t.Error(err)
	}
}

// put writes through one member, as soon as that is possible.
func put(ctx context.Context, t *testing.T, c *Cluster, i int, value string) {
	t.Helper()
	cli, err := c.Client(i)
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	if err := awaitAnswer(ctx, cli); err != nil {
		t.Fatal(err)
	}
	if _, err := cli.Put(ctx, "k", value); err != nil {
		t.Fatalf("put through member %d: %v", i, err)
	}
}
