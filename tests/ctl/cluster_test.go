package ctl

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/coteriedb/coterie/tests/target"
)

// hosts is how many addresses a transcript has for members: those that found the cluster and those that come later.
const hosts = 7

// prelude are functions that every script of a cluster's transcript may use.
//
//	at URL ARGUMENTS   runs etcdctl with one endpoint instead of all (it refuses to be told by flag and environment)
//	answers URL        waits until the member at the address answers a linearizable read
//	calm ARGUMENTS     runs etcdctl, again while the cluster does not see all its members in health
const prelude = `
at() ( ETCDCTL_ENDPOINTS=$1; shift; etcdctl "$@" )
answers() {
	until at "$1" --command-timeout 2s get x >answers.out 2>&1; do :; done
}
calm() {
	until etcdctl "$@" >calm.out 2>calm.err; do
		grep -q "unhealthy cluster" calm.err || break
	done
	cat calm.err calm.out
}
`

// clusterShell runs the transcript of one cluster.
type clusterShell struct {
	*shell
	kind    target.Kind
	dir     string
	cluster *target.Cluster
}

// TestClusterTranscripts runs each transcript on a fresh cluster of either kind, whose members are child processes on
// addresses of their own.
func TestClusterTranscripts(t *testing.T) {
	for _, kind := range []target.Kind{target.KindEtcd, target.KindCoterie} {
		t.Run(string(kind), func(t *testing.T) {
			datadriven.Walk(t, "testdata/cluster", func(t *testing.T, path string) {
				t.Parallel()
				s := &clusterShell{kind: kind, dir: t.TempDir()}
				defer s.end(t)
				datadriven.RunTest(t, path, s.directive)
			})
		})
	}
}

// directive knows, beside those of a single server's transcripts:
//
//	cluster [flags=(F,...)]    starts the members m0, m1 and m2, led by m0; the first directive of each transcript
//	kill member=I              ends a member
//	begin member=I             starts it again and waits until it serves
//	exited member=I            waits until it has ended by itself
func (s *clusterShell) directive(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scriptTimeout)
	defer cancel()
	var number int
	d.MaybeScanArgs(t, "member", &number)
	var err error
	switch d.Cmd {
	case "cluster":
		var flags []string
		if d.HasArg("flags") {
			arg, _ := d.Arg("flags")
			flags = arg.Vals
		}
		err = s.found(ctx, t, flags)
	case "kill":
		err = s.cluster.Kill(number)
	case "begin":
		if err = s.cluster.Start(number); err == nil {
			err = s.cluster.WaitReady(ctx, number)
		}
	case "exited":
		err = s.cluster.AwaitExit(ctx, number)
	default:
		return s.shell.directive(t, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ""
}

func (s *clusterShell) end(t *testing.T) {
	if s.shell != nil {
		s.close()
	}
	if s.cluster == nil {
		return
	}
	if err := s.cluster.Close(); err != nil {
		t.Error(err)
	}
}

// found starts the cluster and the shell whose variables describe it: for each member I of those that there may be EI and
// PI are its URLs, for the first three IDI is its id.
func (s *clusterShell) found(ctx context.Context, t *testing.T, flags []string) error {
	binary, command, err := s.server()
	if err != nil {
		return err
	}
	subnet := freeSubnet(t)
	token := orderingToken(subnet)
	var places []target.Host
	for i := range hosts {
		places = append(places, target.Host{Addr: subnet + strconv.Itoa(1+i)})
	}
	s.cluster, err = target.StartCluster(ctx, target.ClusterConfig{
		Binary: binary, Kind: s.kind, Dir: filepath.Join(s.dir, "members"), Size: 3, Hosts: places,
		Flags: append([]string{"--initial-cluster-token", token}, flags...),
	})
	if err != nil {
		return err
	}
	s.shell = newShell(s.dir, "")
	s.shell.prelude, s.names.subnet = prelude, subnet
	vars := []string{
		"SERVER=" + command, "TOKEN=" + token, "NET=" + subnet,
		"ETCDCTL_ENDPOINTS=" + strings.Join(s.cluster.Endpoints(), ","),
	}
	var initial []string
	for i, h := range places {
		client, peer := "http://"+h.Addr+":2379", "http://"+h.Addr+":2380"
		vars = append(vars, fmt.Sprintf("E%d=%s", i, client), fmt.Sprintf("P%d=%s", i, peer))
		if i < 3 {
			id := strconv.FormatUint(memberID(peer, token), 16)
			s.names.leases[id] = "M" + strconv.Itoa(i)
			vars = append(vars, fmt.Sprintf("ID%d=%s", i, id))
			initial = append(initial, s.cluster.Name(i)+"="+peer)
		}
	}
	s.env = append(s.env, append(vars, "CLUSTER="+strings.Join(initial, ","))...)
	return s.lead(ctx)
}

// server is the binary of this kind and the command that starts one with etcd's flags.
func (s *clusterShell) server() (binary, command string, err error) {
	if s.kind == target.KindCoterie {
		return bin.coterie, strings.Join(append([]string{bin.coterie, "server"}, target.TransportFlags()...), " "), nil
	}
	binary, err = bin.etcd()
	return binary, binary, err
}

// lead makes m0 the leader.
func (s *clusterShell) lead(ctx context.Context) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		leader, err := s.cluster.Leader(ctx)
		if err != nil || leader == 0 {
			return err
		}
		if err := s.moveLeader(ctx, leader); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

func (s *clusterShell) moveLeader(ctx context.Context, from int) error {
	id, err := s.cluster.ID(ctx, 0)
	if err != nil {
		return err
	}
	cli, err := s.cluster.Client(from)
	if err != nil {
		return err
	}
	defer cli.Close()
	_, err = cli.MoveLeader(ctx, id)
	return err
}

// memberID is the id of a founding member, by etcd's formula. A transcript shows ids by the names m0, m1 and m2 only
// where a server has computed the same.
func memberID(peer, token string) uint64 {
	sum := sha1.Sum([]byte(peer + token))
	return binary.BigEndian.Uint64(sum[:])
}

// orderingToken is a token with which the ids of the members are in the order of their numbers, in which they are listed,
// and long enough to be taken for ids.
func orderingToken(subnet string) string {
	for n := 0; ; n++ {
		token := "t" + strconv.Itoa(n)
		var ids []uint64
		for i := range 3 {
			ids = append(ids, memberID("http://"+subnet+strconv.Itoa(1+i)+":2380", token))
		}
		if slices.IsSorted(ids) && ids[0] >= 1<<56 {
			return token
		}
	}
}

// freeSubnet is the beginning of loopback addresses at which nobody serves.
func freeSubnet(t *testing.T) string {
	t.Helper()
	for range 100 {
		subnet := fmt.Sprintf("127.%d.%d.", 10+rand.IntN(200), rand.IntN(250))
		l, err := net.Listen("tcp", subnet+"1:2380")
		if err == nil {
			l.Close()
			return subnet
		}
	}
	t.Fatal("no free subnet of the loopback interface")
	return ""
}
