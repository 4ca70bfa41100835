// Package ctl drives real etcdctl and etcdutl against Coterie as a user would. The transcripts in testdata are
// shell scripts with what they print; the printed part is real etcd's, and Coterie must print the same. What
// two servers cannot have in common (ids, sizes, durations, addresses) is replaced by names before comparing.
//
// The transcripts in testdata/alone hold every command that applies to a single member, those in testdata/cluster what
// several members make different. Left out are check perf and check
// datascale, which measure for a minute and print only measurements, completion, which asks no server, and what
// docs/design.md lists as deliberate differences: downgrades to an older version.
package ctl
