package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// A server has settled when its files have kept their size, and its members have moved no more than restRate bytes a
	// second to and from the disk, for settledAfter; at settleTimeout it is taken as it is.
	settledAfter  = 3 * time.Second
	settleTimeout = 2 * time.Minute
	restRate      = 1 << 20
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

// settle waits until the files of all members that run have kept their size and the members have left the disk alone for
// settledAfter, or until settleTimeout is over: some engines never rest.
func (v *server) settle(ctx context.Context) error {
	var size, moved int64
	began := time.Now()
	since, last := began, began
	return poll(ctx, func() (bool, error) {
		now, m := time.Now(), v.moved()
		s, err := v.size(ctx)
		if err != nil || s != size || float64(m-moved) > restRate*now.Sub(last).Seconds() {
			size, since = s, now
		}
		moved, last = m, now
		if now.Sub(began) >= settleTimeout {
			return true, err
		}
		return now.Sub(since) >= settledAfter, nil
	}, func(err error) error { return err })
}

// moved is how many bytes the members that run have read from the disk and written to it, where the system tells.
func (v *server) moved() (sum int64) {
	for _, m := range v.members {
		if m.ended() {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", m.cmd.Process.Pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			name, value, _ := strings.Cut(line, ": ")
			if name != "read_bytes" && name != "write_bytes" {
				continue
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				sum += n
			}
		}
	}
	return sum
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
