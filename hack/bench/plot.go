package main

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// The plots are few and simple, so they are written as they are, without a library: bars that
// end at or before a line, and a line over time.

const (
	plotWidth  = 820
	labelWidth = 330
	barsWidth  = plotWidth - labelWidth - 70
	rowHeight  = 26

	metColour, shortColour, axisColour = "#2a7f62", "#c05640", "#888"
)

// svg collects the elements of a drawing.
type svg struct {
	strings.Builder
	height int
}

func newSVG(height int) *svg {
	s := &svg{height: height}
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n",
		plotWidth, height, plotWidth, height)
	fmt.Fprintf(s, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, height)
	return s
}

func (s *svg) text(x, y float64, anchor, text string) {
	fmt.Fprintf(s, `<text x="%.0f" y="%.0f" text-anchor="%s" fill="#222">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

func (s *svg) line(x1, y1, x2, y2 float64) {
	fmt.Fprintf(s, `<line x1="%.0f" y1="%.0f" x2="%.0f" y2="%.0f" stroke="%s" stroke-dasharray="4 3"/>`+"\n", x1, y1, x2, y2, axisColour)
}

func (s *svg) bytes() []byte { return []byte(s.String() + "</svg>\n") }

// plot draws how much of its reach each line of the table has reached: one is all of it.
func plot(found []result) []byte {
	const most = 2.0 // what goes beyond is drawn up to here
	top := 40.0
	s := newSVG(int(top) + rowHeight*len(found) + 20)
	one := labelWidth + barsWidth/most
	s.text(one, 24, "middle", "the reach")
	s.line(one, 30, one, float64(s.height)-10)
	for i, r := range found {
		y := top + float64(i*rowHeight)
		s.text(labelWidth-10, y+16, "end", strings.ReplaceAll(r.what, "`", ""))
		colour := metColour
		if r.score < 1 {
			colour = shortColour
		}
		width := barsWidth * math.Min(r.score, most) / most
		fmt.Fprintf(s, `<rect x="%d" y="%.0f" width="%.1f" height="%d" fill="%s"/>`+"\n", labelWidth, y+3, width, rowHeight-8, colour)
		s.text(labelWidth+width+6, y+16, "start", fmt.Sprintf("%.2f", r.score))
	}
	return s.bytes()
}

// plotSoak draws memory over time.
func plotSoak(looks []soaked) []byte {
	const height, left, bottom = 260.0, 60.0, 220.0
	s := newSVG(height)
	most := slices.MaxFunc(looks, func(a, b soaked) int { return int(a.resident - b.resident) }).resident * 1.2
	end := looks[len(looks)-1].at.Seconds()
	var points []string
	for _, l := range looks {
		x := left + (plotWidth-left-20)*l.at.Seconds()/end
		points = append(points, fmt.Sprintf("%.1f,%.1f", x, bottom-(bottom-30)*l.resident/most))
	}
	s.text(left, 20, "start", "resident memory of dedupd under full load")
	for _, mark := range []float64{0, most / 2, most} {
		y := bottom - (bottom-30)*mark/most
		s.text(left-8, y+4, "end", fmt.Sprintf("%.0f MiB", mark))
		s.line(left, y, plotWidth-20, y)
	}
	s.text(left, bottom+22, "start", "0 s")
	s.text(plotWidth-20, bottom+22, "end", fmt.Sprintf("%.0f s", end))
	fmt.Fprintf(s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(points, " "), metColour)
	return s.bytes()
}
