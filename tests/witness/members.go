package witness

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coteriedb/coterie/tests/target"
)

// askTime bounds the reading of one member.
const askTime = 30 * time.Second

// Confront ends the traffic and checks all that was noted against all that the members hold, which has to be the same in all
// that run. It returns the history of one of them, as far as it got.
func Confront(ctx context.Context, c *target.Cluster, t *Traffic) (map[int][]Event, error) {
	settle, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	revision, err := t.Settle(settle)
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	closed := t.Close()
	notes := t.Notes()
	histories, err := ReadHistories(ctx, c, max(notes.Base+1, notes.Compacted), revision)
	errs := []error{closed, err, CompareHashes(ctx, c, revision)}
	notes.Complete(histories)
	return histories, errors.Join(append(errs, Check(notes, histories))...)
}

// Empty deletes all keys. What is done from the revision on that it returns can be checked without what was before.
func Empty(ctx context.Context, c *target.Cluster) (int64, error) {
	cli, err := c.Client()
	if err != nil {
		return 0, err
	}
	defer cli.Close()
	resp, err := cli.Delete(ctx, Prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("delete everything: %w", err)
	}
	return resp.Header.Revision, nil
}

// ReadHistories reads the history of every member that runs.
func ReadHistories(ctx context.Context, c *target.Cluster, from, until int64) (map[int][]Event, error) {
	histories := map[int][]Event{}
	for _, i := range c.Running() {
		ctx, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		cli, err := c.Client(i)
		if err != nil {
			return nil, err
		}
		defer cli.Close()
		if histories[i], err = readHistory(ctx, cli, from, until); err != nil {
			return nil, fmt.Errorf("member %d: %w", i, err)
		}
	}
	return histories, nil
}

// readHistory reads a member's history between two revisions.
func readHistory(ctx context.Context, cli *clientv3.Client, from, until int64) ([]Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events []Event
	for r := range cli.Watch(ctx, "", clientv3.WithPrefix(), clientv3.WithRev(from), clientv3.WithPrevKV()) {
		if err := r.Err(); err != nil {
			return nil, err
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision > until {
				return events, nil
			}
			events = append(events, event(e))
		}
		if len(events) > 0 && events[len(events)-1].Mod >= until {
			return events, nil
		}
	}
	return nil, fmt.Errorf("the history ends after %d events, before revision %d: %w", len(events), until, ctx.Err())
}

// CompareHashes requires that the members hold the same bytes up to a revision.
func CompareHashes(ctx context.Context, c *target.Cluster, revision int64) error {
	var (
		first  uint32
		whose  = -1
		errs   []error
		cancel context.CancelFunc
	)
	ctx, cancel = context.WithTimeout(ctx, askTime)
	defer cancel()
	for _, i := range c.Running() {
		cli, err := c.Client(i)
		if err != nil {
			return err
		}
		defer cli.Close()
		resp, err := cli.HashKV(ctx, c.Endpoint(i), revision)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("hash of member %d: %w", i, err))
		case whose < 0:
			first, whose = resp.Hash, i
		case resp.Hash != first:
			errs = append(errs, fmt.Errorf("members %d and %d differ at revision %d: hashes %x and %x", whose, i, revision, first, resp.Hash))
		}
	}
	return errors.Join(errs...)
}

// Shorten keeps the first lines of what may be thousands, and of each its beginning.
func Shorten(err error) error {
	const keep, width = 20, 600
	lines := strings.Split(err.Error(), "\n")
	for i, line := range lines {
		if len(line) > width {
			lines[i] = line[:width] + "…"
		}
	}
	if len(lines) <= keep {
		return errors.New(strings.Join(lines, "\n"))
	}
	return fmt.Errorf("%s\nand %d lines more", strings.Join(lines[:keep], "\n"), len(lines)-keep)
}
