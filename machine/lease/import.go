package lease

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Import adds to b leases that come from elsewhere, for Open to find them. It
// refuses those that Grant would not have made.
func Import(b *pebble.Batch, leases []Lease) error {
	for _, l := range leases {
		if l.ID == 0 {
			return fmt.Errorf("import leases: a lease has the id 0: %w", ErrNotFound)
		}
		if l.TTL > MaxTTL {
			return fmt.Errorf("import lease %016x: %w", uint64(l.ID), ErrTTLTooLarge)
		}
		if err := (&record{Lease: l}).store(b); err != nil {
			return err
		}
	}
	return nil
}
