// Package light is a gRPC client that costs a load generator next to nothing.
//
// It owns one HTTP/2 connection per Conn and the calls on it. A load generator shares the machine with the servers that
// it measures, and grpc-go's client spends more on a request than the faster of them: with it the generator would measure
// itself. Here a call needs no goroutine, requests that are begun while answers are read leave in one write, header blocks
// that repeat are neither encoded nor decoded again, and a call that has ended can be begun again without allocating.
//
// It promises what a client must: flow control in both directions, the server's settings (concurrent streams, frame and
// table sizes), and the status of every answer. What it leaves out is what a measurement does not want: retries, new
// connections, balancing, compression, deadlines. It knows neither etcd's messages nor any server: messages are bytes.
package light
