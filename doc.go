// Package coterie runs a member of a Coterie cluster inside a Go program: a strongly consistent key-value store that
// speaks etcd's v3 API.
//
// It owns the wiring: Open builds the parts that a Config asks for, joins them, and returns when the member serves; Close
// takes them apart in an order that loses nothing. It promises that members in one process share nothing, and that what
// has been acknowledged survives a crash at any moment. It must not know of command lines, environments or signals;
// those are cmd/coterie's.
package coterie
