// Package discovery has members of new clusters find each other as operators' tools have them do it, with Coterie on
// either side and etcd on the other. It holds tests alone.
package discovery
