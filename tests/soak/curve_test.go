package soak

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const hour = time.Hour

// synthetic is an hour of samples of three members: what each holds is given by a function of how much of the hour has passed.
// Some samples are far from the others, as after a kill or during a compaction.
func synthetic(seed uint64, of func(passed float64, s *Sample)) []Sample {
	r := rand.New(rand.NewPCG(seed, 0))
	var all []Sample
	for at := time.Duration(0); at < hour; at += 5 * time.Second {
		for _, member := range []string{"m0", "m1", "m2"} {
			s := Sample{
				At: at, Member: member,
				Memory: 120<<20 + r.Int64N(40<<20), Goroutines: 150 + r.Int64N(30), Files: 60 + r.Int64N(10), Disk: 150<<20 + r.Int64N(64<<20),
			}
			switch r.IntN(20) {
			case 0:
				s.Memory, s.Goroutines = 30<<20, 20
			case 1:
				s.Memory, s.Disk = 400<<20, 500<<20
			}
			of(at.Seconds()/hour.Seconds(), &s)
			all = append(all, s)
		}
	}
	return all
}

func verdict(t *testing.T, all []Sample) error {
	t.Helper()
	found, err := curves(all, hour)
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 3*len(quantities) {
		t.Fatalf("%d curves", len(found))
	}
	return checkFlat(found)
}

// TestNoiseIsFlat holds the check to curves that do not grow, and to those that grow only while a run gets warm.
func TestNoiseIsFlat(t *testing.T) {
	for seed := range uint64(50) {
		if err := verdict(t, synthetic(seed, func(float64, *Sample) {})); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		warm := func(passed float64, s *Sample) {
			s.Memory = int64(float64(s.Memory) * min(1, 0.2+4*passed))
			s.Disk = int64(float64(s.Disk) * min(1, 0.1+4*passed))
		}
		if err := verdict(t, synthetic(seed, warm)); err != nil {
			t.Errorf("seed %d, with a warm-up: %v", seed, err)
		}
	}
}

// TestGrowthIsNoticed lets one quantity of one member grow in an hour, and leaves all else noise.
func TestGrowthIsNoticed(t *testing.T) {
	tests := []struct {
		want string
		grow func(passed float64, s *Sample)
	}{
		{"memory MiB of m0", func(passed float64, s *Sample) { s.Memory += int64(passed * 150 * (1 << 20)) }},
		{"goroutines of m1", func(passed float64, s *Sample) { s.Goroutines += int64(passed * 120) }},
		{"open files of m1", func(passed float64, s *Sample) { s.Files += int64(passed * 80) }},
		{"disk MiB of m1", func(passed float64, s *Sample) { s.Disk += int64(passed * 400 * (1 << 20)) }},
	}
	for _, test := range tests {
		for seed := range uint64(20) {
			err := verdict(t, synthetic(seed, func(passed float64, s *Sample) {
				if strings.HasSuffix(test.want, s.Member) {
					test.grow(passed, s)
				}
			}))
			if err == nil || !strings.HasPrefix(err.Error(), test.want+" has grown") || strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("seed %d: %s: %v", seed, test.want, err)
			}
		}
	}
}

// TestNothingMeasured requires that what was not measured is not taken for flat.
func TestNothingMeasured(t *testing.T) {
	if _, err := curves(nil, hour); err == nil {
		t.Error("no samples make curves")
	}
	half := within(synthetic(1, func(float64, *Sample) {}), 0, hour/2)
	if _, err := curves(half, hour); err == nil {
		t.Error("samples of the first half make curves")
	}
	if err := verdict(t, synthetic(1, func(_ float64, s *Sample) { s.Goroutines = 0 })); err == nil {
		t.Error("no goroutines were found, and nobody noticed")
	}
}
