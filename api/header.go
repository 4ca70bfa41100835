package api

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// complete fills a header that has at most a revision. One that has none gets the store's.
func (s *Server) complete(h *pb.ResponseHeader) *pb.ResponseHeader {
	h = s.identify(h)
	if h.Revision == 0 {
		h.Revision = s.node.KV().Revision()
	}
	return h
}

// identify fills a header except for its revision.
func (s *Server) identify(h *pb.ResponseHeader) *pb.ResponseHeader {
	if h == nil {
		h = &pb.ResponseHeader{}
	}
	h.ClusterId = s.cfg.ClusterID
	h.MemberId = s.cfg.MemberID
	h.RaftTerm = s.node.Status().Term
	return h
}
