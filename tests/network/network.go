// Package network is a network under the control of a test. Every host is a network namespace of its own whose only way
// out is a TUN device; the test process holds the other end of each, and is the router between them: it loses, delays,
// reorders, duplicates and slows packets as the rules of the moment say, by direction. The test process itself is a host
// too (Clients), so that its clients reach the others.
//
// The package owns namespaces, devices and rules. It promises that two networks, of one process or of several, do not meet;
// that nothing of a network is left when it is closed; and that what a killed process left is removed by the next that
// opens one. It knows nothing of what the hosts say to each other. It needs Linux, the rights of root, /dev/net/tun and
// the program ip; Available tells whether it can work.
package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
)

// Clients is the number of the host that is the test process.
const Clients = -1

// Network is a network of hosts, counted from 0.
type Network struct {
	router *router
	hosts  []string // their addresses
	spaces []string // their namespaces
	remove []func() error

	readers sync.WaitGroup
}

// Open makes a network of so many hosts. The seed settles which packets the rules hit.
func Open(size int, seed uint64) (*Network, error) {
	if err := Available(); err != nil {
		return nil, err
	}
	if size < 1 || size > maxHosts {
		return nil, fmt.Errorf("a network of %d hosts: it has 1 to %d", size, maxHosts)
	}
	n := &Network{}
	if err := n.build(size, rand.New(rand.NewPCG(seed, 0))); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Addr is the address of host i.
func (n *Network) Addr(i int) string { return n.hosts[i] }

// Command is what to put before a program for it to run on host i.
func (n *Network) Command(i int) []string { return []string{"ip", "netns", "exec", n.spaces[i]} }

// Size is the number of hosts, without the clients.
func (n *Network) Size() int { return len(n.hosts) }

// Set gives the packets from one host to another a rule, in place of the one they had. What is on its way stays on its way.
func (n *Network) Set(from, to int, r Rule) { n.router.set(from, to, r) }

// Heal removes all rules.
func (n *Network) Heal() { n.router.heal() }

// Counts says what the router has done so far.
func (n *Network) Counts() Counts { return n.router.counted() }

// Close removes everything, also what Open made before it failed. Programs on the hosts lose their network.
func (n *Network) Close() error {
	var errs []error
	for i := len(n.remove) - 1; i >= 0; i-- {
		errs = append(errs, n.remove[i]())
	}
	n.remove = nil
	n.readers.Wait()
	if n.router != nil {
		n.router.close()
	}
	return errors.Join(errs...)
}
