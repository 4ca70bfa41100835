package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/coteriedb/coterie/bench"
)

// result is everything that a comparison measured; as JSON it lies beside the page.
type result struct {
	Name        string      `json:"name"`
	Environment environment `json:"environment"`
	Members     int         `json:"members"` // of each server
	Rounds      int         `json:"rounds"`
	Seconds     float64     `json:"seconds"` // of each measurement
	Rows        []rowResult `json:"rows"`
}

type rowResult struct {
	Load    string  `json:"load"`
	Clients int     `json:"clients"`
	Conns   int     `json:"conns"`
	Etcd    samples `json:"etcd"`
	Coterie samples `json:"coterie"`
}

// samples are a side's measurements of a row, one for each round.
type samples []sample

type sample struct {
	PerSecond     float64 `json:"per_second"`
	P50US         float64 `json:"p50_us"`
	P99US         float64 `json:"p99_us"`
	ServerCPUUS   float64 `json:"server_cpu_us_per_request"`
	ClientCPUUS   float64 `json:"client_cpu_us_per_request"`
	ResidentBytes int64   `json:"server_resident_bytes"`
	Failed        int64   `json:"failed"`
}

func newSample(r *bench.Report) sample {
	s := sample{
		PerSecond:   tenths(r.PerSecond),
		P50US:       tenths(r.Latency.P50US),
		P99US:       tenths(r.Latency.P99US),
		ServerCPUUS: tenths(r.ServerCPUPerRequest()),
		Failed:      r.Failed + r.Abandoned,
	}
	if r.Client != nil {
		s.ClientCPUUS = tenths(r.Client.CPUPerRequestUS)
	}
	for _, u := range r.Server {
		s.ResidentBytes += u.ResidentBytes
	}
	return s
}

// tenths drops the digits that mean nothing.
func tenths(x float64) float64 { return math.Round(10*x) / 10 }

func newResult(s settings, rows []row) *result {
	r := &result{Name: s.section().name, Members: s.members, Rounds: s.rounds, Seconds: s.duration.Seconds()}
	for _, row := range rows {
		r.Rows = append(r.Rows, rowResult{Load: row.load, Clients: row.clients, Conns: row.conns})
	}
	return r
}

// samples are those of a side, by its index.
func (r *rowResult) samples(side int) *samples {
	return [...]*samples{&r.Etcd, &r.Coterie}[side]
}

func (s *samples) add(x sample) { *s = append(*s, x) }

// median is the median of one number of the samples.
func (s samples) median(of func(sample) float64) float64 {
	values := make([]float64, len(s))
	for i, x := range s {
		values[i] = of(x)
	}
	return median(values)
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

func (s samples) failed() (n int64) {
	for _, x := range s {
		n += x.Failed
	}
	return n
}

func perSecond(s sample) float64 { return s.PerSecond }
func p50(s sample) float64       { return s.P50US }
func p99(s sample) float64       { return s.P99US }
func cpu(s sample) float64       { return s.ServerCPUUS }
func resident(s sample) float64  { return float64(s.ResidentBytes) }

// failures is an error when requests failed: such numbers are not to be trusted.
func (r *result) failures() error {
	var errs []error
	for _, row := range r.Rows {
		for side, name := range []string{"etcd", "Coterie"} {
			if n := row.samples(side).failed(); n > 0 {
				errs = append(errs, fmt.Errorf("%s, %d clients: %d requests to %s failed", row.Load, row.Clients, n, name))
			}
		}
	}
	return errors.Join(errs...)
}

// markdown is the generated section of the page.
func (r *result) markdown() string {
	var b strings.Builder
	b.WriteString(r.Environment.markdown())
	fmt.Fprintf(&b, "\nMedians of %d rounds, %g s for each load in a round. Ratios are Coterie ÷ etcd: of requests/s, more is better; of CPU, less.\n\n",
		r.Rounds, r.Seconds)
	b.WriteString("| load | clients | requests/s etcd | Coterie | ratio | p50 etcd | Coterie | p99 etcd | Coterie | server CPU/request etcd | Coterie | ratio |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, row := range r.Rows {
		e, c := row.Etcd.median, row.Coterie.median
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s | %s | %s | %.1f µs | %.1f µs | %s |\n",
			row.Load, row.Clients,
			humanize.Comma(int64(e(perSecond)+0.5)), humanize.Comma(int64(c(perSecond)+0.5)), ratio(c(perSecond), e(perSecond)),
			millis(e(p50)), millis(c(p50)), millis(e(p99)), millis(c(p99)),
			e(cpu), c(cpu), ratio(c(cpu), e(cpu)))
	}
	last := r.Rows[len(r.Rows)-1]
	of := "the server"
	if r.Members > 1 {
		of = "all members together"
	}
	fmt.Fprintf(&b, "\nResident memory of %s after all loads: etcd %s, Coterie %s.\n", of,
		humanize.IBytes(uint64(last.Etcd.median(resident))), humanize.IBytes(uint64(last.Coterie.median(resident))))
	if err := r.failures(); err != nil {
		fmt.Fprintf(&b, "\nNot to be trusted, because requests failed:\n\n```\n%v\n```\n", err)
	}
	return b.String()
}

func ratio(a, b float64) string {
	if b == 0 {
		return "–"
	}
	return fmt.Sprintf("**%.2f**", a/b)
}

func millis(us float64) string { return fmt.Sprintf("%.2f ms", us/1000) }
