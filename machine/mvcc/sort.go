package mvcc

import (
	"bytes"
	"sort"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// sortRows sorts by the target of r. The order of equal rows is part of what
// clients of etcd see: it is what package sort's unstable sort makes of rows in
// key order, so that is what is used here.
func sortRows(rows []row, r *pb.RangeRequest) {
	if len(rows) < 2 {
		return
	}
	order := r.SortOrder
	if r.SortTarget != pb.RangeRequest_KEY && order == pb.RangeRequest_NONE {
		order = pb.RangeRequest_ASCEND
	}
	by := rowOrder{rows: rows}
	switch r.SortTarget {
	case pb.RangeRequest_KEY:
		by.less = func(a, b *row) bool { return a.key < b.key }
	case pb.RangeRequest_VERSION:
		by.less = func(a, b *row) bool { return a.version < b.version }
	case pb.RangeRequest_CREATE:
		by.less = func(a, b *row) bool { return a.create < b.create }
	case pb.RangeRequest_MOD:
		by.less = func(a, b *row) bool { return a.mod < b.mod }
	case pb.RangeRequest_VALUE:
		by.less = func(a, b *row) bool { return bytes.Compare(a.value, b.value) < 0 }
	default:
		return
	}
	switch {
	case order == pb.RangeRequest_DESCEND:
		sort.Sort(sort.Reverse(&by))
	case order == pb.RangeRequest_ASCEND && r.SortTarget != pb.RangeRequest_KEY:
		sort.Sort(&by)
	}
}

type rowOrder struct {
	rows []row
	less func(a, b *row) bool
}

func (o *rowOrder) Len() int           { return len(o.rows) }
func (o *rowOrder) Less(i, j int) bool { return o.less(&o.rows[i], &o.rows[j]) }
func (o *rowOrder) Swap(i, j int)      { o.rows[i], o.rows[j] = o.rows[j], o.rows[i] }
