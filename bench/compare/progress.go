package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
)

// progress tells how far a run is: a line for each step, and on a terminal a bar of the rounds of the part below them.
type progress struct {
	out      io.Writer
	terminal bool
	began    time.Time
	name     string
	n, of    int // round
}

func newProgress(out io.Writer) *progress {
	f, ok := out.(*os.File)
	return &progress{out: out, terminal: ok && isatty.IsTerminal(f.Fd()), began: time.Now()}
}

func (p *progress) part(name string) { p.name, p.n, p.of = name, 0, 0 }

func (p *progress) round(n, of int) {
	p.n, p.of = n, of
	p.step("round %d of %d", n, of)
}

// step prints a line.
func (p *progress) step(format string, args ...any) {
	const eraseLine = "\r\x1b[K"
	if p.terminal {
		fmt.Fprint(p.out, eraseLine)
	}
	fmt.Fprintf(p.out, "%5.0f s  %-13s %s\n", time.Since(p.began).Seconds(), p.name, fmt.Sprintf(format, args...))
	if !p.terminal || p.of == 0 {
		return
	}
	const width = 30
	done := width * (p.n - 1) / p.of
	for i := range width {
		fmt.Fprint(p.out, map[bool]string{true: "█", false: "░"}[i < done])
	}
	fmt.Fprintf(p.out, " %s, round %d of %d", p.name, p.n, p.of)
}
