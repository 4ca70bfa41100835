package main

import (
	"fmt"
	"html"
	"strings"
)

// Measures of a chart, in pixels.
const (
	chartWidth  = 760
	labelWidth  = 330
	barsWidth   = 300
	barHeight   = 13
	barGap      = 10
	chartMargin = 24
)

// chart draws a table as SVG: for each figure a bar of either side, both in proportion to the longer one, because figures
// differ by orders of magnitude. Of loads it shows how many there were, and what they cost.
func (t *table) chart() string {
	var shown []*figure
	for _, f := range t.Figures {
		if q := f.quantity(); q == generatorCPU || t.wide() && q != requestsPerSecond && q != cpuPerRequest {
			continue
		}
		shown = append(shown, f)
	}
	height := chartMargin + len(shown)*(2*barHeight+barGap) + barGap
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", chartWidth, height)
	b.WriteString(`<rect width="100%" height="100%" fill="#fff"/>` + "\n")
	colors := [sideCount]string{"#9aa5b1", "#1f6feb"}
	for side, name := range sideNames {
		fmt.Fprintf(&b, `<rect x="%d" y="6" width="10" height="10" fill="%s"/><text x="%d" y="15">%s</text>`+"\n",
			labelWidth+80*side, colors[side], labelWidth+80*side+14, name)
	}
	for i, f := range shown {
		y := chartMargin + i*(2*barHeight+barGap)
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, y+barHeight+4, html.EscapeString(f.Row+": "+f.Quantity))
		longest := max(f.median(etcdSide), f.median(coterieSide))
		for side, color := range colors {
			value, width := f.median(side), 0.0
			if longest > 0 {
				width = barsWidth * value / longest
			}
			top := y + side*barHeight
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
				labelWidth, top, width, barHeight-2, color, labelWidth+width+5, top+barHeight-3, html.EscapeString(f.quantity().text(value)))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}
