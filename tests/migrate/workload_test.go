package migrate

import (
	"fmt"
	"math/rand/v2"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// workload makes history of every kind.
type workload struct {
	t      *testing.T
	cli    *clientv3.Client
	r      *rand.Rand
	leases []clientv3.LeaseID
	users  int
}

func newWorkload(t *testing.T, cli *clientv3.Client, seed uint64) *workload {
	t.Logf("seed %d", seed)
	return &workload{t: t, cli: cli, r: rand.New(rand.NewPCG(seed, 0))}
}

func (w *workload) key() string {
	if w.r.IntN(20) == 0 {
		return string([]byte{0, byte(w.r.IntN(3))}) // zeros, which stored keys have to escape
	}
	return fmt.Sprintf("k/%02d", w.r.IntN(60))
}

func (w *workload) put() clientv3.Op {
	var opts []clientv3.OpOption
	if len(w.leases) > 0 && w.r.IntN(4) == 0 {
		opts = append(opts, clientv3.WithLease(w.leases[w.r.IntN(len(w.leases))]))
	}
	return clientv3.OpPut(w.key(), fmt.Sprint("value ", w.r.Int64()), opts...)
}

// run does n random things.
func (w *workload) run(n int) {
	w.t.Helper()
	for range n {
		if err := w.step(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *workload) step() error {
	ctx := w.t.Context()
	switch p := w.r.IntN(100); {
	case p < 60:
		_, err := w.cli.Do(ctx, w.put())
		return err
	case p < 70:
		_, err := w.cli.Delete(ctx, w.key())
		return err
	case p < 72:
		_, err := w.cli.Delete(ctx, fmt.Sprintf("k/%d", w.r.IntN(6)), clientv3.WithPrefix())
		return err
	case p < 84:
		_, err := w.cli.Txn(ctx).If(clientv3.Compare(clientv3.Version(w.key()), ">", 0)).
			Then(w.put(), clientv3.OpDelete("k/7", clientv3.WithPrefix())).
			Else(clientv3.OpPut(fmt.Sprintf("else/%d", w.r.IntN(5)), "x"), clientv3.OpPut("else", "")).Commit()
		if err != nil && err.Error() == "etcdserver: duplicate key given in txn request" {
			return nil
		}
		return err
	case p < 90:
		resp, err := w.cli.Grant(ctx, 10_000+w.r.Int64N(1000))
		if err == nil {
			w.leases = append(w.leases, resp.ID)
		}
		return err
	case p < 92 && len(w.leases) > 3:
		id := w.leases[0]
		w.leases = w.leases[1:]
		_, err := w.cli.Revoke(ctx, id)
		return err
	case p < 97:
		return w.user()
	default:
		resp, err := w.cli.Get(ctx, "x")
		if err != nil || resp.Header.Revision < 20 {
			return err
		}
		_, err = w.cli.Compact(ctx, resp.Header.Revision-w.r.Int64N(15), clientv3.WithCompactPhysical())
		if err != nil && err.Error() == "etcdserver: mvcc: required revision has been compacted" {
			return nil
		}
		return err
	}
}

// user adds a user with a role of its own, or takes a role away.
func (w *workload) user() error {
	ctx := w.t.Context()
	if w.users > 2 && w.r.IntN(3) == 0 {
		_, err := w.cli.RoleDelete(ctx, fmt.Sprint("role", w.users-1))
		if err == nil {
			w.users-- // of roles that are there; the user stays and is not added again
			_, err = w.cli.UserDelete(ctx, fmt.Sprint("user", w.users))
		}
		return err
	}
	user, role := fmt.Sprint("user", w.users), fmt.Sprint("role", w.users)
	w.users++
	if _, err := w.cli.UserAdd(ctx, user, "password of "+user); err != nil {
		return err
	}
	if _, err := w.cli.RoleAdd(ctx, role); err != nil {
		return err
	}
	for range 1 + w.r.IntN(3) {
		if _, err := w.cli.RoleGrantPermission(ctx, role, w.key(), "z", clientv3.PermissionType(w.r.IntN(3))); err != nil {
			return err
		}
	}
	_, err := w.cli.UserGrantRole(ctx, user, role)
	return err
}

// alarm raises one, and lets it be.
func (w *workload) alarm() {
	w.t.Helper()
	if _, err := pb.NewMaintenanceClient(w.cli.ActiveConnection()).Alarm(w.t.Context(),
		&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 0xabc, Alarm: pb.AlarmType_NOSPACE}); err != nil {
		w.t.Fatal(err)
	}
}
