package coterie

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestStrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s strain
		syncs := func(n int, d time.Duration) {
			for range n {
				time.Sleep(2 * time.Millisecond)
				s.observe(d)
			}
		}
		time.Sleep(time.Minute)
		syncs(2000, time.Millisecond)
		if s.high() {
			t.Error("strained by what is usual")
		}
		// While it is asked, it does not get used to what it sees.
		for range 100 {
			syncs(50, 2*time.Millisecond)
			if !s.high() {
				t.Fatal("not strained by syncs that take twice as long")
			}
		}
		syncs(100, time.Millisecond)
		if !s.high() {
			t.Error("what came and went between two questions was not told")
		}
		if s.high() {
			t.Error("strained by what is over")
		}
		for range 10 {
			syncs(1, 10*time.Millisecond)
			syncs(100, time.Millisecond)
			if !s.high() {
				t.Fatal("not strained by one sync in a hundred that takes ten times as long")
			}
		}
		syncs(100, time.Millisecond)
		s.high()
		// Afterwards it does.
		time.Sleep(2 * askedFor)
		syncs(3000, 2*time.Millisecond)
		if s.high() {
			t.Error("strained by what has become usual")
		}
	})
}
