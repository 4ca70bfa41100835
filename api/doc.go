// Package api answers etcd's v3 API: the gRPC services KV, Watch, Lease, Cluster, Maintenance
// and Auth as release 3.7 of etcd answers them.
//
// It checks requests that can be judged without state, decides what goes through consensus and
// what is read where, completes response headers and turns every error into the code and text
// that etcd's clients know. It promises that an answer of this package differs from etcd's only
// where docs say so.
//
// On a transport that takes handlers the requests that clients send most wait without a goroutine
// each: see hot.go. All others, and these on another transport, are the services' generated
// methods; both ways go through the same functions, and give the same answers.
//
// It holds no state of the store and must not know how consensus, the machine or the transport
// work: it sees a Node, declared here, and registers on any grpc.ServiceRegistrar. What it does
// own are the long streams of clients: Close ends them, so that a server can stop.
package api
