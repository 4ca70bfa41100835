// Package loopback finds addresses for servers that tests and benchmarks start, stop and start again.
package loopback

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Ports come from below those that systems give to connections (32768 and above on Linux, 49152 elsewhere): a
// connection would otherwise be given the port of a server that is down for a moment, even one that dials that server.
const first, last = 15000, 32000

var (
	mu   sync.Mutex
	next = first + rand.IntN(last-first) // another process most likely begins elsewhere. Guarded by mu.
)

// Addresses returns n addresses, 127.0.0.1 and a port, that nobody listens on. They are not held, but this process returns them again only
// when it has been through all others, and connections do not get them, so that they stay free while their server is down.
func Addresses(n int) ([]string, error) {
	mu.Lock()
	defer mu.Unlock()
	var addresses []string
	for range last - first {
		port := next
		if next++; next == last {
			next = first
		}
		address := "127.0.0.1:" + strconv.Itoa(port)
		l, err := net.Listen("tcp", address)
		if err != nil {
			continue // somebody's
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		if addresses = append(addresses, address); len(addresses) == n {
			return addresses, nil
		}
	}
	return nil, errors.New("not enough free ports on the loopback interface")
}
