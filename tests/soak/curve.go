package soak

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"
)

// Sample is what one member's process held at a moment.
type Sample struct {
	At         time.Duration // since the beginning of the run
	Member     string
	Process    int   // the process's id: another one after each restart
	Memory     int64 // resident, in bytes
	Goroutines int64
	Files      int64 // open ones, and connections
	Disk       int64 // size of the files in the data directory, in bytes
}

// quantity is one of the curves of a member, and how much higher a flat one may be at its end.
type quantity struct {
	name   string
	of     func(*Sample) int64
	aging  bool  // it depends on how old a process is, and is judged for the veteran alone
	unit   int64 // of the table
	share  float64
	amount int64
	why    string // what moves a flat curve by so much
}

// quantities are all curves. What they are allowed is what moves them without a leak; what leaks goes on, and is beyond that
// in a run that is long enough.
var quantities = []quantity{
	{"memory MiB", func(s *Sample) int64 { return s.Memory }, true, 1 << 20, 0.15, 24 << 20,
		"the collector runs when the heap has doubled, and a median may be from before or after"},
	{"goroutines", func(s *Sample) int64 { return s.Goroutines }, false, 1, 0.1, 20,
		"connections and streams come and go with the clients of a period"},
	{"open files", func(s *Sample) int64 { return s.Files }, false, 1, 0.1, 16,
		"connections, and tables that the engine happens to have open"},
	{"disk MiB", func(s *Sample) int64 { return s.Disk }, false, 1 << 20, 0.1, 96 << 20,
		"a segment of the log is 32 MiB and goes as a whole, and the next one is made before; the same with tables"},
}

// curve is what became of one quantity of one member.
type curve struct {
	member             string
	quantity           *quantity
	samples            int
	before, after, max int64 // medians of the second quarter of the run and of the last, and the highest sample
}

// judged reports whether the curve has to be flat.
func (c *curve) judged() bool { return !c.quantity.aging || c.member == oldest }

// limit is how high the end of a flat curve may be.
func (c *curve) limit() int64 {
	return c.before + int64(c.quantity.share*float64(c.before)) + c.quantity.amount
}

// minSamples is how many samples a quarter must have, or its median says nothing.
const minSamples = 3

// curves makes the curves of a run of the given length. Its first quarter is not looked at: caches fill, and logs get their
// length. An error says that there is too little to judge.
func curves(samples []Sample, length time.Duration) ([]curve, error) {
	byMember := map[string][]Sample{}
	for _, s := range samples {
		byMember[s.Member] = append(byMember[s.Member], s)
	}
	var all []curve
	for member, own := range byMember {
		second, last := within(own, length/4, length/2), within(own, length*3/4, length+time.Hour)
		if len(second) < minSamples || len(last) < minSamples {
			return nil, fmt.Errorf("%s was measured %d times in the second quarter, and %d times in the last: too few", member, len(second), len(last))
		}
		for i := range quantities {
			q := &quantities[i]
			c := curve{member: member, quantity: q, samples: len(own), before: median(second, q.of), after: median(last, q.of)}
			for _, s := range own {
				c.max = max(c.max, q.of(&s))
			}
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("nothing was measured")
	}
	slices.SortFunc(all, func(a, b curve) int {
		return cmp.Or(cmp.Compare(a.quantity.name, b.quantity.name), cmp.Compare(a.member, b.member))
	})
	return all, nil
}

func within(samples []Sample, from, to time.Duration) []Sample {
	var some []Sample
	for _, s := range samples {
		if s.At >= from && s.At < to {
			some = append(some, s)
		}
	}
	return some
}

func median(samples []Sample, of func(*Sample) int64) int64 {
	values := make([]int64, len(samples))
	for i := range samples {
		values[i] = of(&samples[i])
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// checkFlat requires that nothing grows from the second quarter of a run to its last by more than it may. Medians are
// compared, not the slope of a line: a kill or a compaction gives a few samples far from the others, and those move no median.
func checkFlat(all []curve) error {
	var errs []error
	for i := range all {
		c := &all[i]
		if c.judged() && c.after > c.limit() {
			errs = append(errs, fmt.Errorf("%s of %s has grown from %d to %d, and may be %d (%s)", c.quantity.name, c.member,
				c.before/c.quantity.unit, c.after/c.quantity.unit, c.limit()/c.quantity.unit, c.quantity.why))
		}
		if c.before == 0 {
			errs = append(errs, fmt.Errorf("%s of %s was never more than nothing", c.quantity.name, c.member))
		}
	}
	return errors.Join(errs...)
}

// writeTable prints the curves for people.
func writeTable(w io.Writer, all []curve) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "curve\tmember\tsamples\tsecond quarter\tlast quarter\tallowed\thighest\t")
	for i := range all {
		c := &all[i]
		unit := c.quantity.unit
		allowed := "-"
		if c.judged() {
			allowed = strconv.FormatInt(c.limit()/unit, 10)
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%s\t%d\t\n", c.quantity.name, c.member, c.samples, c.before/unit, c.after/unit, allowed, c.max/unit)
	}
	return tw.Flush()
}

// writeSamples writes samples as lines of comma-separated values.
func writeSamples(w io.Writer, samples []Sample) error {
	if _, err := fmt.Fprintln(w, "seconds,member,process,memory_bytes,goroutines,open_files,disk_bytes"); err != nil {
		return err
	}
	for _, s := range samples {
		if _, err := fmt.Fprintf(w, "%.1f,%s,%d,%d,%d,%d,%d\n", s.At.Seconds(), s.Member, s.Process, s.Memory, s.Goroutines, s.Files, s.Disk); err != nil {
			return err
		}
	}
	return nil
}
