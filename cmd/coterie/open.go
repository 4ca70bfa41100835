package main

import (
	"context"

	"github.com/coteriedb/coterie"
)

// openNode starts a real member.
func openNode(ctx context.Context, config coterie.Config) (node, error) {
	n, err := coterie.Open(ctx, config)
	if err != nil {
		return nil, err // not n: a nil *Node in an interface is not nil
	}
	return n, nil
}
