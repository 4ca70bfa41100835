package mvcc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A transaction is decided before it is executed: the compares of all nested
// transactions on the chosen branches see the state before the first
// operation. Then the chosen operations are checked against that same state,
// so that execution cannot fail half way. Decisions are kept in the order in
// which a walk of the chosen branches meets the transactions.

// IsReadOnly reports whether r has nothing but ranges at its top level. Like
// etcd, it takes a nested transaction for a write.
func IsReadOnly(r *pb.TxnRequest) bool {
	for _, ops := range [...][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			if op.GetRequestRange() == nil {
				return false
			}
		}
	}
	return true
}

// Txn applies a transaction. It makes one revision if it changed anything.
func (s *Store) Txn(r *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx := context.Background()
	st := s.pending()
	path, err := st.decide(ctx, r, nil)
	if err != nil {
		fatal(err)
	}
	left := s.commandBytes
	if _, err := st.check(r, path, &left); err != nil {
		return nil, err
	}
	s.counters.txns.Add(1)
	resp, _, err := s.execute(ctx, s.pending, r, path)
	if err != nil {
		fatal(err)
	}
	s.w.finish()
	resp.Header.Revision = s.w.rev
	return resp, nil
}

// ReadTxn executes a transaction for which IsReadOnly holds, on one view.
func (s *Store) ReadTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if err := s.read(); err != nil {
		return nil, err
	}
	defer s.reading.RUnlock()
	st := s.pin()
	defer st.release()
	path, err := st.decide(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	left := s.commandBytes
	if _, err := st.check(r, path, &left); err != nil {
		return nil, err
	}
	s.counters.txns.Add(1)
	resp, _, err := s.execute(ctx, func() state { return st }, r, path)
	if err != nil {
		return nil, err
	}
	resp.Header.Revision = st.rev
	return resp, nil
}

// decide appends the decisions of r to path.
func (st *state) decide(ctx context.Context, r *pb.TxnRequest, path []bool) ([]bool, error) {
	ok, err := st.holds(ctx, r.GetCompare())
	if err != nil {
		return nil, err
	}
	path = append(path, ok)
	for _, op := range branch(r, ok) {
		nested, ok := op.GetRequest().(*pb.RequestOp_RequestTxn)
		if !ok {
			continue
		}
		if path, err = st.decide(ctx, nested.RequestTxn, path); err != nil {
			return nil, err
		}
	}
	return path, nil
}

func branch(r *pb.TxnRequest, succeeded bool) []*pb.RequestOp {
	if succeeded {
		return r.GetSuccess()
	}
	return r.GetFailure()
}

// check finds the first operation that would fail, or write more than is left.
// It returns the decisions after those of r.
func (st *state) check(r *pb.TxnRequest, path []bool, left *allowance) (rest []bool, err error) {
	ok, path := path[0], path[1:]
	for _, op := range branch(r, ok) {
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			err = st.checkRange(op.RequestRange)
		case *pb.RequestOp_RequestPut:
			if err = st.s.checkPut(&st.index, op.RequestPut); err == nil {
				err = left.takePut(st, op.RequestPut)
			}
		case *pb.RequestOp_RequestDeleteRange:
			err = left.takeRange(&st.index, spanOf(op.RequestDeleteRange.Key, op.RequestDeleteRange.RangeEnd))
		case *pb.RequestOp_RequestTxn:
			path, err = st.check(op.RequestTxn, path, left)
		}
		if err != nil {
			return nil, err
		}
	}
	return path, nil
}

// checkRange is stricter than a range by itself, which takes any revision below
// one for the latest: here those below the compacted one fail.
func (st *state) checkRange(r *pb.RangeRequest) error {
	switch {
	case r.Revision == 0:
		return nil
	case r.Revision > st.rev:
		return ErrFutureRev
	case r.Revision < st.compact:
		return ErrCompacted
	}
	return nil
}

// execute executes the chosen operations, ranges on the state that now returns
// at their turn. It returns the decisions after those of r.
func (s *Store) execute(ctx context.Context, now func() state, r *pb.TxnRequest, path []bool) (resp *pb.TxnResponse, rest []bool, err error) {
	ok, path := path[0], path[1:]
	ops := branch(r, ok)
	resp = &pb.TxnResponse{
		Header:    &pb.ResponseHeader{},
		Succeeded: ok,
		Responses: make([]*pb.ResponseOp, len(ops)),
	}
	for i, op := range ops {
		out := &pb.ResponseOp{}
		resp.Responses[i] = out
		switch op := op.GetRequest().(type) {
		case *pb.RequestOp_RequestRange:
			st := now()
			rr, err := st.read(ctx, op.RequestRange, true)
			if err != nil {
				return nil, nil, err
			}
			out.Response = &pb.ResponseOp_ResponseRange{ResponseRange: rr}
		case *pb.RequestOp_RequestPut:
			out.Response = &pb.ResponseOp_ResponsePut{ResponsePut: s.put(op.RequestPut)}
		case *pb.RequestOp_RequestDeleteRange:
			out.Response = &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: s.deleteRange(op.RequestDeleteRange)}
		case *pb.RequestOp_RequestTxn:
			var nested *pb.TxnResponse
			if nested, path, err = s.execute(ctx, now, op.RequestTxn, path); err != nil {
				return nil, nil, err
			}
			out.Response = &pb.ResponseOp_ResponseTxn{ResponseTxn: nested}
		}
	}
	return resp, path, nil
}
