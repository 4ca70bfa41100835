package bench

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/dustin/go-humanize"
)

// Report is what a run measured. Its JSON is stable: fields may be added, units are in the names.
type Report struct {
	Load    string  `json:"load"`
	Clients int     `json:"clients"`
	Conns   int     `json:"conns"`
	Rate    float64 `json:"rate"` // asked for; 0: a closed loop

	Parameters map[string]string `json:"parameters,omitempty"` // what the caller wants to remember

	Seconds     float64      `json:"seconds"` // from the beginning to the last answer
	Succeeded   int64        `json:"succeeded"`
	Failed      int64        `json:"failed"`
	Unsent      int64        `json:"unsent"`              // due and not sent, because every client was busy
	Abandoned   int64        `json:"abandoned"`           // unanswered when the run was over
	SetAside    int64        `json:"set_aside,omitempty"` // of Succeeded, those that waited while the machine stood still: they have no latency
	PerSecond   float64      `json:"per_second"`
	Errors      []ErrorCount `json:"errors,omitempty"`
	Interrupted bool         `json:"interrupted"`

	Latency    Latency    `json:"latency"`           // of the successes; at a fixed rate from when they were due
	Service    *Latency   `json:"service,omitempty"` // at a fixed rate: from when they were sent
	Operations []Operated `json:"operations,omitempty"`
	Events     *Events    `json:"events,omitempty"`
	Server     []Usage    `json:"server,omitempty"`
	Client     *Usage     `json:"client,omitempty"`

	ServerError  string `json:"server_error,omitempty"`   // why Server is missing though asked for
	CleanUpError string `json:"clean_up_error,omitempty"` // what the run may have left on the server
}

// Operated is the part of one kind of request, where a load has several.
type Operated struct {
	Kind      string  `json:"kind"`
	Succeeded int64   `json:"succeeded"`
	PerSecond float64 `json:"per_second"`
	Latency   Latency `json:"latency"`
}

// Events is what the server pushed because of the measured requests.
type Events struct {
	Watchers  int          `json:"watchers"`
	Expected  int64        `json:"expected"`
	Delivered int64        `json:"delivered"`
	PerSecond float64      `json:"per_second"`
	Latency   Latency      `json:"latency"` // from when the put was due
	Errors    []ErrorCount `json:"errors,omitempty"`
}

// Latency is a distribution, in microseconds.
type Latency struct {
	MeanUS float64 `json:"mean_us"`
	P50US  float64 `json:"p50_us"`
	P90US  float64 `json:"p90_us"`
	P99US  float64 `json:"p99_us"`
	P999US float64 `json:"p99_9_us"`
	MaxUS  float64 `json:"max_us"`
}

func newLatency(h *hdrhistogram.Histogram) Latency {
	if h.TotalCount() == 0 {
		return Latency{}
	}
	at := func(percentile float64) float64 { return micros(time.Duration(h.ValueAtPercentile(percentile))) }
	return Latency{
		MeanUS: h.Mean() / float64(time.Microsecond),
		P50US:  at(50), P90US: at(90), P99US: at(99), P999US: at(99.9), MaxUS: micros(time.Duration(h.Max())),
	}
}

func newReport(kinds []string, p phase) *Report {
	seconds := p.end.Sub(p.start).Seconds()
	perSecond := func(n int64) float64 {
		if seconds <= 0 {
			return 0
		}
		return float64(n) / seconds
	}
	all := mergeAll(len(kinds), p.recorder.merged)
	r := &Report{
		Clients:   p.plan.Clients,
		Rate:      p.plan.Rate,
		Seconds:   seconds,
		Succeeded: all.TotalCount() + p.recorder.setAside(),
		SetAside:  p.recorder.setAside(),
		Unsent:    p.unsent,
		Abandoned: p.abandoned,
		PerSecond: perSecond(all.TotalCount() + p.recorder.setAside()),
		Errors:    p.recorder.errors.counts(),
		Latency:   newLatency(all),
	}
	r.Failed = total(r.Errors)
	if p.plan.Rate > 0 {
		service := newLatency(mergeAll(len(kinds), p.recorder.mergedService))
		r.Service = &service
	}
	for k, kind := range kinds {
		if len(kinds) == 1 {
			break
		}
		h := p.recorder.merged(k)
		r.Operations = append(r.Operations, Operated{kind, h.TotalCount(), perSecond(h.TotalCount()), newLatency(h)})
	}
	return r
}

// Err is ErrNothingDone, with the reason, when no request succeeded.
func (r *Report) Err() error {
	switch {
	case r.Succeeded > 0:
		return nil
	case len(r.Errors) > 0:
		return fmt.Errorf("%w: %d failed, most with %s: %s", ErrNothingDone, r.Failed, r.Errors[0].Code, r.Errors[0].Example)
	}
	return ErrNothingDone
}

// ServerCPUPerRequest is the CPU time of all server processes for a request, in microseconds.
func (r *Report) ServerCPUPerRequest() (us float64) {
	for _, u := range r.Server {
		us += u.CPUPerRequestUS
	}
	return us
}

// WriteTable writes the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-14s%s\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString(r.title() + "\n\n")
	line("requests", "%s ok, %s failed%s", humanize.Comma(r.Succeeded), humanize.Comma(r.Failed), r.leftOver())
	line("rate", "%s requests/s", rate(r.PerSecond))
	if r.Events != nil {
		line("events", "%s of %s delivered to %s watchers",
			humanize.Comma(r.Events.Delivered), humanize.Comma(r.Events.Expected), humanize.Comma(int64(r.Events.Watchers)))
		line("", "%s events/s", rate(r.Events.PerSecond))
	}

	fmt.Fprintf(&b, "\n  %-14s%10s%10s%10s%10s%10s%10s\n", "latency", "p50", "p90", "p99", "p99.9", "max", "mean")
	latency := func(name string, l Latency) {
		fmt.Fprintf(&b, "  %-14s%10s%10s%10s%10s%10s%10s\n", name,
			duration(l.P50US), duration(l.P90US), duration(l.P99US), duration(l.P999US), duration(l.MaxUS), duration(l.MeanUS))
	}
	all := "requests"
	if r.Service != nil {
		all = "from due time"
	}
	latency(all, r.Latency)
	if r.Service != nil {
		latency("from sending", *r.Service)
	}
	for _, o := range r.Operations {
		latency(o.Kind, o.Latency)
	}
	if r.Events != nil {
		latency("events", r.Events.Latency)
	}

	if len(r.Server) > 0 || r.Client != nil {
		b.WriteString("\n")
	}
	for _, u := range r.Server {
		line("server", "%s", u)
	}
	if r.Client != nil {
		line("this client", "%s", *r.Client)
	}
	for _, e := range r.notes() {
		fmt.Fprintf(&b, "\n  %s\n", e)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) title() string {
	loop := "each waiting for its answer"
	if r.Rate > 0 {
		loop = fmt.Sprintf("at a fixed %s requests/s", humanize.Commaf(r.Rate))
	}
	return fmt.Sprintf("%s: %s on %s, %s, %.2f s", r.Load, count(r.Clients, "client"), count(r.Conns, "connection"), loop, r.Seconds)
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return humanize.Comma(int64(n)) + " " + what
}

func (r *Report) leftOver() (s string) {
	if r.Unsent > 0 {
		s += fmt.Sprintf(", %s due but never sent", humanize.Comma(r.Unsent))
	}
	if r.Abandoned > 0 {
		s += fmt.Sprintf(", %s unanswered at the end", humanize.Comma(r.Abandoned))
	}
	return s
}

// notes are the things that a reader of the numbers must know.
func (r *Report) notes() (out []string) {
	list := func(what string, errs []ErrorCount) {
		for _, e := range errs {
			out = append(out, fmt.Sprintf("%s × %s (%s), for example: %s", humanize.Comma(e.Count), e.Code, what, e.Example))
		}
	}
	list("failed requests", r.Errors)
	if r.Events != nil {
		list("lost watch streams", r.Events.Errors)
	}
	if r.Unsent > 0 {
		out = append(out, "The server could not keep up with the rate, or there are too few clients for it.")
	}
	if r.ServerError != "" {
		out = append(out, "No server usage: "+r.ServerError)
	}
	if r.CleanUpError != "" {
		out = append(out, "Cleaning up failed: "+r.CleanUpError)
	}
	if r.Interrupted {
		out = append(out, "Interrupted: these are the numbers until then.")
	}
	return out
}

func (u Usage) String() string {
	return fmt.Sprintf("%s (%d): %.2f s CPU, %.1f µs/request, %s resident, %s at most",
		u.Command, u.PID, u.CPUSeconds, u.CPUPerRequestUS,
		humanize.IBytes(uint64(u.ResidentBytes)), humanize.IBytes(uint64(u.ResidentMaxBytes)))
}

// rate renders a number per second with about four digits.
func rate(perSecond float64) string {
	if perSecond < 100 {
		return fmt.Sprintf("%.2f", perSecond)
	}
	return humanize.Comma(int64(perSecond + 0.5))
}

// duration renders microseconds with three digits.
func duration(us float64) string {
	value, unit := us, "µs"
	switch {
	case us >= 1e6:
		value, unit = us/1e6, "s"
	case us >= 1e3:
		value, unit = us/1e3, "ms"
	}
	digits := 0
	switch {
	case value < 10:
		digits = 2
	case value < 100:
		digits = 1
	}
	return fmt.Sprintf("%.*f %s", digits, value, unit)
}
