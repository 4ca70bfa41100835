package main

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// pollEvery is the pause between two questions for something that is awaited.
const pollEvery = 50 * time.Millisecond

// status is what the member says of itself.
func (m *member) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	cli, err := m.client()
	if err != nil {
		return nil, err
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return cli.Status(ctx, m.endpoint())
}

// lead makes the first member the leader, so that it is known who that is, on both sides alike.
func (v *server) lead(ctx context.Context) error {
	var last error
	return poll(ctx, func() (bool, error) {
		var done bool
		done, last = v.tryToLead(ctx)
		return done, nil
	}, func(err error) error { return errors.Join(err, last) })
}

// tryToLead reports whether all members follow the first one, and asks for it if they do not.
func (v *server) tryToLead(ctx context.Context) (bool, error) {
	first, err := v.members[0].status(ctx)
	if err != nil {
		return false, err
	}
	following := true
	for _, m := range v.members {
		st, err := m.status(ctx)
		if err != nil {
			return false, err
		}
		following = following && st.Leader == first.Header.MemberId
		if st.Leader != st.Header.MemberId || st.Header.MemberId == first.Header.MemberId {
			continue
		}
		cli, err := m.client()
		if err != nil {
			return false, err
		}
		_, err = cli.MoveLeader(ctx, first.Header.MemberId)
		cli.Close()
		if err != nil {
			return false, err
		}
	}
	return following, nil
}

// poll repeats a question until the answer is yes or an error. When ctx ends first, late makes the error.
func poll(ctx context.Context, ask func() (bool, error), late func(error) error) error {
	again := time.NewTicker(pollEvery)
	defer again.Stop()
	for {
		if done, err := ask(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return late(ctx.Err())
		case <-again.C:
		}
	}
}
