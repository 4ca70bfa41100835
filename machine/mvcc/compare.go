package mvcc

import (
	"bytes"
	"cmp"
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// holds reports whether all of cs hold in st.
func (st *state) holds(ctx context.Context, cs []*pb.Compare) (bool, error) {
	for _, c := range cs {
		ok, err := st.compare(ctx, c)
		if err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// compare reports whether c holds for every key of its range. Where there is
// none, it compares with a key of all zeroes; but a missing value equals,
// precedes and follows nothing.
func (st *state) compare(ctx context.Context, c *pb.Compare) (bool, error) {
	sp := spanOf(c.Key, c.RangeEnd)
	if c.Target == pb.Compare_VALUE {
		return st.compareValues(ctx, c, &sp)
	}
	want, holds, found := operand(c), true, false
	n := 0
	sp.each(&st.index, func(it *item) bool {
		found = true
		holds = satisfies(c.Result, cmp.Compare(target(c.Target, it), want))
		n++
		return holds && (n%checkEvery != 0 || ctx.Err() == nil)
	})
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if !found {
		holds = satisfies(c.Result, cmp.Compare(target(c.Target, &item{}), want))
	}
	return holds, nil
}

// compareBatch is how many values a range compare holds in memory at a time.
const compareBatch = 256

func (st *state) compareValues(ctx context.Context, c *pb.Compare, sp *span) (bool, error) {
	var want []byte
	if v, ok := c.TargetUnion.(*pb.Compare_Value); ok {
		want = v.Value
	}
	next, hi := sp.ranks(&st.index)
	if next == hi {
		return false, nil
	}
	rows := make([]row, 0, min(compareBatch, hi-next))
	for next < hi {
		rows = rows[:0]
		st.index.ascendRank(next, func(it *item) bool {
			rows = append(rows, row{item: *it})
			return len(rows) < min(compareBatch, hi-next)
		})
		next += len(rows)
		if err := st.load(ctx, st.rev, rows); err != nil {
			return false, err
		}
		for i := range rows {
			if !satisfies(c.Result, bytes.Compare(rows[i].value, want)) {
				return false, nil
			}
		}
	}
	return true, nil
}

// operand is the number that c compares with; zero if it has none of the
// target's kind.
func operand(c *pb.Compare) int64 {
	switch c.Target {
	case pb.Compare_VERSION:
		if v, ok := c.TargetUnion.(*pb.Compare_Version); ok {
			return v.Version
		}
	case pb.Compare_CREATE:
		if v, ok := c.TargetUnion.(*pb.Compare_CreateRevision); ok {
			return v.CreateRevision
		}
	case pb.Compare_MOD:
		if v, ok := c.TargetUnion.(*pb.Compare_ModRevision); ok {
			return v.ModRevision
		}
	case pb.Compare_LEASE:
		if v, ok := c.TargetUnion.(*pb.Compare_Lease); ok {
			return v.Lease
		}
	}
	return 0
}

// target is the number of it that a compare looks at. One that etcd does not
// know compares equal.
func target(t pb.Compare_CompareTarget, it *item) int64 {
	switch t {
	case pb.Compare_VERSION:
		return it.version
	case pb.Compare_CREATE:
		return it.create
	case pb.Compare_MOD:
		return it.mod
	case pb.Compare_LEASE:
		return it.lease
	}
	return 0
}

// satisfies reports whether an order, negative, zero or positive, is the result
// asked for. A result that etcd does not know always is.
func satisfies(want pb.Compare_CompareResult, order int) bool {
	switch want {
	case pb.Compare_EQUAL:
		return order == 0
	case pb.Compare_NOT_EQUAL:
		return order != 0
	case pb.Compare_GREATER:
		return order > 0
	case pb.Compare_LESS:
		return order < 0
	}
	return true
}
