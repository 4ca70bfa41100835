package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Why Join gives up. Trying again would not help: whoever made the token has to do something.
var (
	ErrSizeNotFound = errors.New("discovery: size key not found: put the number of members there before they start")
	ErrBadSize      = errors.New("discovery: size key is bad: it must hold the number of members")
	ErrFull         = errors.New("discovery: cluster is full: a token is for one cluster, make a new one for another")
	ErrSameName     = errors.New("discovery: two members have one name: give each its own --name, and make a new token")
)

const (
	registryPrefix = "/_etcd/registry/"

	// Failed requests are repeated after the first of these times, which doubles up to the second.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
)

// Registry is the part of a cluster's key space in which the members under a token enter themselves:
//
//	/_etcd/registry/<token>/_config/size   how many there are to be
//	/_etcd/registry/<token>/members/<id>   one of them, as "name=url,name=url"; the id is hexadecimal
//
// Those that were first count.
type Registry struct {
	KV      clientv3.KV
	Watcher clientv3.Watcher
	Token   string
	// RequestTimeout bounds each request. A request that fails is repeated until the context ends.
	RequestTimeout time.Duration
	Logger         *zap.Logger
}

// Join enters a member, waits until all are there, and returns them. It may be called again with the same id, after a
// start that was interrupted.
func Join(ctx context.Context, r Registry, id uint64, self string) (initialCluster string, err error) {
	r.Logger = r.Logger.With(zap.String("discovery-token", r.Token))
	own := r.prefix() + strconv.FormatUint(id, 16)
	found, err := r.roster(ctx)
	if err != nil {
		return "", err
	}
	if len(found.members) >= found.size && !found.counts(own) {
		return "", ErrFull // and this member does not enter itself
	}
	err = r.retry(ctx, func(ctx context.Context) error {
		_, err := r.KV.Put(ctx, own, self)
		return err
	})
	if err != nil {
		return "", err
	}
	for {
		if found, err = r.roster(ctx); err != nil {
			return "", err
		}
		r.Logger.Info("members that are known to the discovery service", zap.Int("found", len(found.members)), zap.Int("size", found.size))
		if len(found.members) >= found.size {
			break
		}
		if err := r.wait(ctx, found.revision); err != nil {
			return "", err
		}
	}
	if !found.counts(own) {
		return "", ErrFull
	}
	return found.cluster()
}

// Connect makes a client of the service, for a registry with its RequestTimeout and Logger: again and again as long as nobody answers,
// for one that has to log in does so when it is made.
func Connect(ctx context.Context, r Registry, make func() (*clientv3.Client, error)) (client *clientv3.Client, err error) {
	err = r.retry(ctx, func(context.Context) (err error) {
		client, err = make()
		return err
	})
	return client, err
}

func (r *Registry) prefix() string { return registryPrefix + r.Token + "/members/" }

// roster is who has entered himself as of a revision.
type roster struct {
	size     int
	members  []*mvccpb.KeyValue // those that were first come first
	revision int64
}

// counts reports whether the key is one of those that make up the cluster.
func (o *roster) counts(key string) bool {
	return slices.ContainsFunc(o.members[:min(o.size, len(o.members))], func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == key })
}

// cluster is the first members that are enough.
func (o *roster) cluster() (string, error) {
	parts := make([]string, 0, o.size)
	named := make(map[string]bool)
	for _, kv := range o.members[:o.size] {
		value := entry(kv)
		name, _, _ := strings.Cut(value, "=")
		if named[name] {
			return "", fmt.Errorf("%w: both are %q", ErrSameName, name)
		}
		named[name] = true
		parts = append(parts, value)
	}
	return strings.Join(parts, ","), nil
}

func entry(kv *mvccpb.KeyValue) string { return strings.TrimSpace(string(kv.Value)) }

// roster reads the registry.
func (r *Registry) roster(ctx context.Context) (*roster, error) {
	var o *roster
	err := r.retry(ctx, func(ctx context.Context) (err error) {
		o, err = r.read(ctx)
		return err
	})
	return o, err
}

func (r *Registry) read(ctx context.Context) (*roster, error) {
	sizeKey := registryPrefix + r.Token + "/_config/size"
	resp, err := r.KV.Get(ctx, sizeKey)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrSizeNotFound, sizeKey)
	}
	size, err := strconv.Atoi(string(resp.Kvs[0].Value))
	if err != nil || size <= 0 {
		return nil, fmt.Errorf("%w: %s is %q", ErrBadSize, sizeKey, resp.Kvs[0].Value)
	}
	if resp, err = r.KV.Get(ctx, r.prefix(), clientv3.WithPrefix()); err != nil {
		return nil, err
	}
	o := &roster{size: size, revision: resp.Header.Revision}
	for _, kv := range resp.Kvs {
		if !strings.Contains(entry(kv), "=") {
			r.Logger.Warn("an entry at the discovery service is no member", zap.ByteString("key", kv.Key), zap.ByteString("value", kv.Value))
			continue
		}
		o.members = append(o.members, kv)
	}
	slices.SortFunc(o.members, func(a, b *mvccpb.KeyValue) int { return cmp.Compare(a.CreateRevision, b.CreateRevision) })
	return o, nil
}

// wait returns when the registry has changed since a revision, or may have.
func (r *Registry) wait(ctx context.Context, revision int64) error {
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := r.Watcher.Watch(watching, r.prefix(), clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	select {
	case change, ok := <-changes:
		if ok && change.Err() == nil {
			return nil
		}
		r.Logger.Warn("the watch at the discovery service has ended; reading again", zap.Error(change.Err()))
		return sleep(ctx, firstRetry)
	case <-ctx.Done():
		return stopped(ctx)
	}
}

// retry repeats a request until it succeeds, fails for good, or the context ends.
func (r *Registry) retry(ctx context.Context, request func(context.Context) error) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		limited, cancel := context.WithTimeout(ctx, r.RequestTimeout)
		err := request(limited)
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return stopped(ctx)
		case final(err):
			return fmt.Errorf("the discovery service answers: %w", err)
		}
		r.Logger.Warn("the discovery service does not answer; trying again", zap.Error(err), zap.Duration("after", pause))
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// final reports whether a request would fail again.
func final(err error) bool {
	return slices.ContainsFunc([]error{
		ErrSizeNotFound, ErrBadSize, rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrAuthFailed,
	}, func(target error) bool { return errors.Is(err, target) })
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return stopped(ctx)
	}
}

func stopped(ctx context.Context) error {
	return fmt.Errorf("discovery: stopped before all members were found: %w", context.Cause(ctx))
}
