package loopback

import (
	"net"
	"sync"
	"testing"
)

func TestAddressesDifferAndCanBeHad(t *testing.T) {
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		seen  = map[string]bool{} // Guarded by mu.
	)
	for range 8 {
		group.Go(func() {
			addresses, err := Addresses(20)
			if err != nil || len(addresses) != 20 {
				t.Errorf("Addresses(20) = %v, %v", addresses, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, address := range addresses {
				if seen[address] {
					t.Errorf("address %s was given twice", address)
				}
				seen[address] = true
			}
		})
	}
	group.Wait()
	for address := range seen {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			continue
		}
		l.Close()
	}
}

func TestTooManyAddresses(t *testing.T) {
	if addresses, err := Addresses(last - first + 1); err == nil {
		t.Errorf("%d addresses instead of an error", len(addresses))
	}
}
