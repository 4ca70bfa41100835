package footprint

import "testing"

var kept []byte

func TestOf(t *testing.T) {
	if got := Of(func() { kept = make([]byte, 10<<20) }); got < 10<<20 || got > 12<<20 {
		t.Errorf("10 MiB are %d bytes", got)
	}
	if got := Of(func() {}); got > 1<<20 {
		t.Errorf("nothing is %d bytes", got)
	}
}
