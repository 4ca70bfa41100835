package main

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A server has settled when its files have kept their size for settledAfter; at settleTimeout it is taken as it is.
	settledAfter  = 3 * time.Second
	settleTimeout = time.Minute
)

// compact discards all that is not current, and returns when the first member has done so.
func (v *server) compact(ctx context.Context) error {
	cli, err := v.members[0].client()
	if err != nil {
		return err
	}
	defer cli.Close()
	now, err := cli.Get(ctx, "\x00", clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	_, err = cli.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	return err
}

// defragment has the members that run give back the space that they do not need.
func (v *server) defragment(ctx context.Context) error {
	for _, m := range v.members {
		if m.ended() {
			continue
		}
		cli, err := m.client()
		if err != nil {
			return err
		}
		_, err = cli.Defragment(ctx, m.endpoint())
		if err = errors.Join(err, cli.Close()); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until the files of all members that run have kept their size for settledAfter, or until settleTimeout is
// over: some engines never rest.
func (v *server) settle(ctx context.Context) error {
	var size int64
	since, began := time.Now(), time.Now()
	return poll(ctx, func() (bool, error) {
		now, err := v.size(ctx)
		if err != nil || now != size {
			size, since = now, time.Now()
		}
		if time.Since(began) >= settleTimeout {
			return true, err
		}
		return time.Since(since) >= settledAfter, nil
	}, func(err error) error { return err })
}

// size is what the members that run say their files hold, in bytes.
func (v *server) size(ctx context.Context) (sum int64, err error) {
	for _, m := range v.members {
		if m.ended() {
			continue
		}
		st, memberErr := m.status(ctx)
		if memberErr != nil {
			err = errors.Join(err, memberErr)
			continue
		}
		sum += st.DbSize
	}
	return sum, err
}

// ended reports whether the member's process has ended.
func (m *member) ended() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}
