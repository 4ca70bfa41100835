package main

import "testing"

func TestThrift(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		name  string
		rates []uint64 // megabytes allocated from one look to the next
		want  []int    // the looks that give memory back
	}{
		{"nothing", []uint64{0, 0, 0}, nil},
		{"little", []uint64{1, 1, 1, 1, 1, 1}, nil},
		{"one burst", []uint64{500, 0, 0, 0}, []int{1}},
		{"a long burst", []uint64{30, 500, 500, 40, 4, 0}, []int{4}},
		{"what follows is less, but not quiet", []uint64{500, 20, 20, 20}, nil},
		{"a burst after a burst", []uint64{100, 0, 0, 100, 0}, []int{1, 4}},
		{"a small burst is not over before its share is small", []uint64{70, 4, 3, 2}, []int{3}},
		{"a steady trickle", []uint64{3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3}, []int{31}},
	} {
		var th thrift
		var got []int
		total := uint64(0)
		for i, r := range c.rates {
			total += r * mb
			if th.look(total) {
				got = append(got, i)
			}
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: given back at %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: given back at %v, want %v", c.name, got, c.want)
			}
		}
	}
}
