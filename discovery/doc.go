// Package discovery finds the members of a cluster that is to be founded, and returns them in the form of
// --initial-cluster: SRV asks DNS, Join asks the key space of another cluster, of etcd or of Coterie, in which each
// member enters itself.
//
// All members must come to the same answer, for ids are made from it: an answer that may lack somebody is an error. The
// package reads nothing of this member's own state, and does not judge the members it finds.
package discovery
