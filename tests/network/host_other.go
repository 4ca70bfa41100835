//go:build !linux

package network

import (
	"errors"
	"math/rand/v2"
)

const maxHosts = 100

// Available says why no network can be made here.
func Available() error { return errors.New("a network of namespaces needs Linux") }

func (n *Network) build(int, *rand.Rand) error { return Available() }
