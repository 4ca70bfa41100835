package engine

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// TestYieldPolicy: what is on disk is the plain policy's, so either reads it. The
// work rests where nothing waits for it, and only there.
func TestYieldPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pace := newPace()
		plain, yielding := bloom.FilterPolicy(10), yieldPolicy{bloom.FilterPolicy(10), pace}
		if plain.Name() != yielding.Name() {
			t.Errorf("the name is %q, want %q", yielding.Name(), plain.Name())
		}
		const rests = 5
		for _, hurried := range []bool{false, true} {
			if hurried {
				defer pace.hurry()()
			}
			began := time.Now()
			v, w := plain.NewWriter(pebble.TableFilter), yielding.NewWriter(pebble.TableFilter)
			for i := range rests * turnsPerRest * keysPerTurn {
				key := fmt.Append(nil, i)
				v.AddKey(key)
				w.AddKey(key)
			}
			if !bytes.Equal(v.Finish(nil), w.Finish(nil)) {
				t.Error("the filters differ")
			}
			if rested := time.Since(began); rested != rests*rest && !hurried || rested != 0 && hurried {
				t.Errorf("hurried %v: the work has rested for %v", hurried, rested)
			}
		}
	})
}
