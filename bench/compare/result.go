package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
)

// The sides of a comparison, in their order everywhere.
const (
	etcdSide = iota
	coterieSide
	sideCount
)

var sideNames = [sideCount]string{"etcd", "Coterie"}

// quantity is what is measured, with its unit.
type quantity struct{ name, unit string }

const (
	perSecondUnit = "1/s"
	microseconds  = "µs"
	secondsUnit   = "s"
	bytesUnit     = "bytes"
	timesUnit     = "×"
)

var (
	requestsPerSecond = quantity{"requests/s", perSecondUnit}
	p50Latency        = quantity{"p50", microseconds}
	p99Latency        = quantity{"p99", microseconds}
	cpuPerRequest     = quantity{"server CPU/request", microseconds}
	generatorCPU      = quantity{"generator CPU/request", microseconds}
	eventsPerSecond   = quantity{"events/s", perSecondUnit}
	cpuPerEvent       = quantity{"server CPU/event", microseconds}
)

// text renders a value for the page.
func (q quantity) text(x float64) string {
	switch q.unit {
	case perSecondUnit:
		return humanize.Comma(int64(x + 0.5))
	case microseconds:
		switch {
		case x >= 1e6:
			return fmt.Sprintf("%.2f s", x/1e6)
		case x >= 1e3:
			return millis(x)
		}
		return fmt.Sprintf("%.1f µs", x)
	case secondsUnit:
		return fmt.Sprintf("%.2f s", x)
	case bytesUnit:
		return humanize.IBytes(uint64(x))
	}
	return fmt.Sprintf("%.2f", x)
}

// requirement is what must hold of a figure's median: of the ratio Coterie ÷ etcd, or, absolutely, of Coterie's value.
type requirement struct {
	least, most float64 // 0: no such bound
	absolute    bool
}

func atLeast(ratio float64) requirement { return requirement{least: ratio} }
func atMost(ratio float64) requirement  { return requirement{most: ratio} }

func (r requirement) String() string {
	if r.least > 0 {
		return fmt.Sprintf("≥ %.3g", r.least)
	}
	return fmt.Sprintf("≤ %.3g", r.most)
}

func (r requirement) holds(x float64) bool {
	return (r.least == 0 || x >= r.least) && (r.most == 0 || x <= r.most)
}

// cell names a figure: a row and what is measured of it.
type cell struct {
	row      string
	quantity quantity
}

// figure is one number, measured of both sides in every round.
type figure struct {
	Row      string    `json:"row"`
	Quantity string    `json:"quantity"`
	Unit     string    `json:"unit"`
	Etcd     []float64 `json:"etcd"`
	Coterie  []float64 `json:"coterie"`
	// Of the medians.
	Ratio    float64 `json:"ratio"` // Coterie ÷ etcd
	Required string  `json:"required,omitempty"`
	Absolute bool    `json:"required_of_coterie_alone,omitempty"`
	Holds    *bool   `json:"holds,omitempty"`

	requirement requirement
}

func (f *figure) quantity() quantity { return quantity{f.Quantity, f.Unit} }

func (f *figure) median(side int) float64 {
	return median([...][]float64{f.Etcd, f.Coterie}[side])
}

// judge computes what is known of the medians.
func (f *figure) judge() {
	etcd, coterie := f.median(etcdSide), f.median(coterieSide)
	f.Ratio = 0
	if etcd > 0 {
		f.Ratio = coterie / etcd
	}
	if f.Required == "" || len(f.Coterie) == 0 {
		return
	}
	judged := f.Ratio
	if f.Absolute {
		judged = coterie
	}
	holds := f.requirement.holds(judged)
	f.Holds = &holds
}

// verdict says what is required of a value, and whether it is so.
func (f *figure) verdict() string {
	switch {
	case f.Holds == nil:
		return ""
	case *f.Holds:
		return fmt.Sprintf(" (%s)", f.Required)
	}
	return fmt.Sprintf(" (✗ %s)", f.Required)
}

// table is everything that a part measured; as JSON it lies beside the page.
type table struct {
	Name        string      `json:"name"`
	Environment environment `json:"environment"`
	Client      string      `json:"client"`
	Flags       []string    `json:"flags,omitempty"` // of both servers, besides names, addresses and directories
	Rounds      int         `json:"rounds"`
	Seconds     float64     `json:"seconds"` // of each measurement of a load
	Figures     []*figure   `json:"figures"`
	Failed      []failed    `json:"failed,omitempty"`

	required map[cell]requirement
}

// failed are requests of a row that failed: such a row is not to be trusted.
type failed struct {
	Row   string `json:"row"`
	Side  string `json:"side"`
	Count int64  `json:"count"`
}

// add records a number of a side.
func (t *table) add(row string, q quantity, side int, value float64) {
	i := slices.IndexFunc(t.Figures, func(f *figure) bool { return f.Row == row && f.quantity() == q })
	if i < 0 {
		f := &figure{Row: row, Quantity: q.name, Unit: q.unit}
		if r, ok := t.required[cell{row, q}]; ok {
			f.requirement, f.Required, f.Absolute = r, r.String(), r.absolute
		}
		i = len(t.Figures)
		t.Figures = append(t.Figures, f)
	}
	f := t.Figures[i]
	to := [...]*[]float64{&f.Etcd, &f.Coterie}[side]
	*to = append(*to, value)
	f.judge()
}

func (t *table) fail(row string, side int, n int64) {
	if n > 0 {
		t.Failed = append(t.Failed, failed{row, sideNames[side], n})
	}
}

// median is 0 for no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	values = slices.Sorted(slices.Values(values))
	mid := len(values) / 2
	if len(values)%2 == 0 {
		return (values[mid-1] + values[mid]) / 2
	}
	return values[mid]
}

// failures is an error when requests failed: such numbers are not to be trusted.
func (t *table) failures() error {
	var errs []error
	for _, f := range t.Failed {
		errs = append(errs, fmt.Errorf("%s: %d requests to %s failed", f.Row, f.Count, f.Side))
	}
	return errors.Join(errs...)
}

// markdown is the generated section of the page.
func (t *table) markdown() string {
	var b strings.Builder
	b.WriteString(t.Environment.markdown())
	if len(t.Flags) > 0 {
		fmt.Fprintf(&b, "- both servers with `%s`\n", strings.Join(t.Flags, " "))
	}
	fmt.Fprintf(&b, "- client: %s\n", t.Client)
	fmt.Fprintf(&b, "\nMedians of %d rounds, %g s for each load in a round. Ratios are Coterie ÷ etcd. In parentheses what is required.%s\n\n",
		t.Rounds, t.Seconds, t.score())
	if t.wide() {
		t.loads(&b)
	} else {
		t.list(&b)
	}
	fmt.Fprintf(&b, "\n![%s](benchmarks/%s.svg)\n", t.Name, t.Name)
	if err := t.failures(); err != nil {
		fmt.Fprintf(&b, "\nNot to be trusted, because requests failed:\n\n```\n%v\n```\n", err)
	}
	return b.String()
}

// score says how many requirements hold.
func (t *table) score() string {
	var all, hold int
	for _, f := range t.Figures {
		if f.Holds != nil {
			if all++; *f.Holds {
				hold++
			}
		}
	}
	switch {
	case all == 0:
		return ""
	case hold == all:
		return fmt.Sprintf(" All %d requirements hold.", all)
	}
	return fmt.Sprintf(" Of %d requirements %d hold; ✗ marks the others.", all, hold)
}

// wide reports whether all rows are loads, which have a table with a line for each.
func (t *table) wide() bool {
	return !slices.ContainsFunc(t.Figures, func(f *figure) bool {
		return !slices.Contains([]quantity{requestsPerSecond, p50Latency, p99Latency, cpuPerRequest, generatorCPU}, f.quantity())
	})
}

// find is a figure, empty if it was not measured.
func (t *table) find(row string, q quantity) *figure {
	for _, f := range t.Figures {
		if f.Row == row && f.quantity() == q {
			return f
		}
	}
	return &figure{Row: row, Quantity: q.name, Unit: q.unit}
}

func (t *table) rows() (rows []string) {
	for _, f := range t.Figures {
		if !slices.Contains(rows, f.Row) {
			rows = append(rows, f.Row)
		}
	}
	return rows
}

func (t *table) loads(b *strings.Builder) {
	b.WriteString("| load | requests/s etcd | Coterie | ratio | p50 etcd | Coterie | p99 etcd | Coterie | server CPU/request etcd | Coterie | ratio |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, row := range t.rows() {
		fmt.Fprintf(b, "| %s |", row)
		for _, q := range []quantity{requestsPerSecond, p50Latency, p99Latency, cpuPerRequest} {
			f := t.find(row, q)
			fmt.Fprintf(b, " %s | %s |", q.text(f.median(etcdSide)), q.text(f.median(coterieSide)))
			if q == requestsPerSecond || q == cpuPerRequest {
				fmt.Fprintf(b, " %s%s |", ratio(f.Ratio), f.verdict())
			}
		}
		b.WriteString("\n")
	}
}

func (t *table) list(b *strings.Builder) {
	b.WriteString("| load | what | etcd | Coterie | ratio |\n|---|---|--:|--:|--:|\n")
	for _, f := range t.Figures {
		q := f.quantity()
		if q == generatorCPU {
			continue
		}
		ofCoterie, ofRatio := "", f.verdict()
		if f.Absolute {
			ofCoterie, ofRatio = ofRatio, ofCoterie
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s%s | %s%s |\n", f.Row, q.name,
			q.text(f.median(etcdSide)), q.text(f.median(coterieSide)), ofCoterie, ratio(f.Ratio), ofRatio)
	}
}

func ratio(x float64) string {
	if x == 0 {
		return "–"
	}
	if x < 0.1 {
		return fmt.Sprintf("**%.2g**", x)
	}
	return fmt.Sprintf("**%.2f**", x)
}

func millis(us float64) string { return fmt.Sprintf("%.2f ms", us/1000) }
