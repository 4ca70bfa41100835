package mvcc

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestAlternateRestsAsLongAsItWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		rest := alternate(2 * time.Millisecond)
		for range 9 { // of a millisecond each; the ninth is not a while yet
			time.Sleep(time.Millisecond)
			rest()
		}
		if took := time.Since(began); took != 17*time.Millisecond {
			t.Errorf("9 ms of work took %v, want 17 ms", took)
		}
	})
}
