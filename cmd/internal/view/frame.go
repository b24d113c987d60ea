package view

import (
	"fmt"
	"math"
	"strings"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/guptarohit/asciigraph"

	"github.com/stokehold/stokehold/cmd/internal/report"
)

// Look says how frames are drawn.
type Look struct {
	Theme report.Theme
	// Graph colours of the frozen and the loop's curve; zero: the terminal's own.
	Frozen, Loop asciigraph.AnsiColor
}

// NewLook returns the look for a terminal: colour is false under NO_COLOR.
func NewLook(colour, dark bool) Look {
	switch {
	case !colour:
		return Look{}
	case dark:
		return Look{Theme: report.NewTheme(true), Frozen: asciigraph.SlateGray, Loop: asciigraph.SandyBrown}
	default:
		return Look{Theme: report.NewTheme(false), Frozen: asciigraph.Gray, Loop: asciigraph.Chocolate}
	}
}

const (
	label     = 10 // cells before the content of a labelled line
	tableSize = 79 // cells of the weeks' table
	gap       = 3  // between the table and the graph
	minGraph  = 30 // cells of the smallest graph worth showing
	tall      = 32 // lines of a terminal with room for more than the newest denial
)

// Frame draws s: at most Height-1 lines of at most Width cells.
func Frame(s State, look Look) string {
	f := frame{s: s, look: look, th: look.Theme, width: max(1, s.Width)}
	room := max(1, s.Height-1)
	f.header()
	if !s.Done {
		f.run()
		f.flow()
		f.weeks(room)
	}
	lines := f.lines
	if len(lines) > room {
		lines = lines[:room]
	}
	for i, l := range lines {
		lines[i] = ansi.Truncate(l, f.width, "…")
	}
	return strings.Join(lines, "\n")
}

type frame struct {
	s     State
	look  Look
	th    report.Theme
	width int
	lines []string
}

func (f *frame) add(lines ...string) { f.lines = append(f.lines, lines...) }

// labelled is a line of the form "name  content".
func (f *frame) labelled(name, content string) {
	f.add(" " + f.th.Dim.Render(pad(name, label-1)) + content)
}

// spread puts a at the left end and b at the right.
func (f *frame) spread(a, b string) string {
	return a + strings.Repeat(" ", max(1, f.width-1-lipgloss.Width(a)-lipgloss.Width(b))) + b
}

func (f *frame) header() {
	state := ""
	switch {
	case f.s.Done:
		state = f.th.Good.Render("done")
	case f.s.Stopping:
		state = f.th.Warn.Render("stopping; press ctrl+c again to kill")
	case f.s.Note != "":
		state = f.th.Dim.Render(report.Clean(f.s.Note))
	case f.s.Expected > 0:
		state = f.th.Dim.Render(fmt.Sprintf("week %d of %d", len(f.s.Fold.Weeks), f.s.Expected))
	}
	left := " " + f.th.Title.Render("◆ stokehold") + "  " + report.Clean(f.s.Title)
	right := state + "  " + f.th.Title.Render(clock(f.s.elapsed()))
	f.add(f.spread(ansi.Truncate(left, max(1, f.width-3-lipgloss.Width(right)), "…"), right))
	if f.s.UI != "" {
		f.labelled("Temporal", f.th.Second.Render(f.s.UI))
	}
}

// run shows the main run in full and the newest of the short ones in a line.
func (f *frame) run() {
	full, brief := f.s.shown()
	f.add("")
	if full < 0 {
		return
	}
	r := f.s.Runs[full]
	f.add(f.runHead(r, ""))
	for _, st := range r.Stages {
		f.add(f.stage(st))
	}
	if brief < 0 {
		return
	}
	b := f.s.Runs[brief]
	var stages strings.Builder
	for _, st := range b.Stages {
		mark, _, _ := f.mark(st)
		stages.WriteString("  " + mark + " " + f.th.Dim.Render(report.Clean(st.Name)))
	}
	f.add(f.runHead(b, stages.String()))
}

// runHead names a run; rest follows the name in place of what started it.
func (f *frame) runHead(r Run, rest string) string {
	state, end := f.th.Dim.Render("running"), f.s.Now
	if !r.Ended.IsZero() {
		end, state = r.Ended, f.th.Good.Render("complete")
	}
	if r.Failed != "" {
		state = f.th.Bad.Render("failed: " + ansi.Truncate(report.Clean(r.Failed), max(10, f.width/2), "…"))
	}
	name := " " + f.th.Accent.Render(report.Clean(r.Pipeline))
	switch {
	case rest != "":
		name += rest
	case r.Trigger != "":
		name += f.th.Dim.Render("  by ") + f.th.Warn.Render(report.Clean(r.Trigger)) + f.th.Dim.Render("  "+report.Clean(r.ID))
	default:
		name += f.th.Dim.Render("  " + report.Clean(r.ID))
	}
	right := state + f.th.Dim.Render(fmt.Sprintf("%6.1f s", max(0, end.Sub(r.Began).Seconds())))
	return f.spread(ansi.Truncate(name, max(1, f.width-3-lipgloss.Width(right)), "…"), right)
}

// mark is a stage's sign and the styles of its name and bar.
func (f *frame) mark(st Stage) (mark string, name, bar lipgloss.Style) {
	switch st.Status {
	case Running:
		spin := []rune("◐◓◑◒")
		return f.th.Accent.Render(string(spin[int(f.s.elapsed().Milliseconds()/200)%len(spin)])), f.th.Text, f.th.Accent
	case Complete:
		return f.th.Good.Render("✓"), f.th.Text, f.th.Good
	case Failed:
		return f.th.Bad.Render("✗"), f.th.Bad, f.th.Bad
	case Waiting:
	}
	return f.th.Dim.Render("·"), f.th.Dim, f.th.Accent
}

func (f *frame) stage(st Stage) string {
	mark, name, bar := f.mark(st)
	// Columns: mark and name, bar, count, note. The note goes first when it is narrow.
	const nameSize, countSize = 12, 13
	noteSize := min(28, max(0, f.width-60))
	barSize := max(4, f.width-3-nameSize-1-countSize-1-noteSize)
	count := ""
	switch {
	case st.Status == Complete && st.Seconds > 0:
		count = fmt.Sprintf("%.1f s", st.Seconds)
	case st.Total > 0:
		count = report.Count(st.Done) + "/" + report.Count(st.Total)
	case st.Done > 0:
		count = report.Count(st.Done)
	}
	note := report.Clean(st.Note)
	if st.Attempt > 1 {
		note = strings.TrimSpace(fmt.Sprintf("attempt %d  %s", st.Attempt, note))
	}
	return " " + mark + " " + name.Render(pad(ansi.Truncate(report.Clean(st.Name), nameSize-1, "…"), nameSize)) +
		f.bar(st, barSize, bar) + " " + lead(ansi.Truncate(count, countSize-1, "…"), countSize-1) + "  " +
		f.th.Dim.Render(ansi.Truncate(note, max(0, noteSize-1), "…"))
}

func (f *frame) bar(st Stage, size int, style lipgloss.Style) string {
	line := func(n int) string { return strings.Repeat("━", max(0, n)) }
	rest := func(n int) string { return f.th.Rule.Render(strings.Repeat("─", max(0, n))) }
	switch {
	case st.Status == Complete:
		return style.Render(line(size))
	case st.Status == Waiting:
		return rest(size)
	case st.Total > 0:
		n := int(math.Round(float64(size) * min(1, max(0, float64(st.Done)/float64(st.Total)))))
		return style.Render(line(n)) + rest(size-n)
	case st.Status == Failed:
		return style.Render(line(size))
	}
	// Unknown length: a piece that travels to and fro.
	piece := max(2, size/6)
	way := size - piece
	at := int(f.s.elapsed().Milliseconds()/60) % max(1, 2*way)
	if at > way {
		at = 2*way - at
	}
	return rest(at) + style.Render(line(piece)) + rest(size-piece-at)
}

// flow is what moves: events, batches, tiers, decisions.
func (f *frame) flow() {
	f.add("")
	rate := 0.0
	if n := len(f.s.Rates); n > 0 {
		rate = f.s.Rates[n-1]
	}
	left := lead(report.Count(int64(math.Round(rate))), 6) + "/s  "
	right := "  " + lead(report.Count(f.s.Fold.Events), 7) + " events"
	size := min(60, f.width-label-lipgloss.Width(left)-lipgloss.Width(right)-1)
	f.labelled("events", left+f.th.Accent.Render(pad(Sparkline(f.s.Rates, size), max(0, size)))+right)

	b, t := f.s.batches(), f.s.Fold.Tiers
	copied := f.th.Good.Render("0 B copied")
	if b.CopiedBytes > 0 {
		copied = f.th.Bad.Render(report.Bytes(b.CopiedBytes) + " copied")
	}
	tiers := fmt.Sprintf("hot %s  warm %s  cold %s", report.Count(t.Hot), report.Count(t.Warm), report.Count(t.Cold))
	f.labelled("batches", fmt.Sprintf("%s published  %s leased  %s by reference  %s", lead(report.Count(b.Published), 6),
		report.Count(b.Leased), report.Bytes(b.BodyBytes), copied))
	f.labelled("tiers", fmt.Sprintf("%s moved  %s", lead(report.Count(t.Moved), 6), f.th.Dim.Render(tiers)))
	denied := f.th.Dim.Render("0 denied")
	if f.s.Counters.Denied > 0 {
		denied = f.th.Warn.Render(report.Count(f.s.Counters.Denied) + " denied")
	}
	allowed := lead(report.Count(max(0, f.s.Counters.Judged-f.s.Counters.Denied)), 6) + " allowed  " + denied
	n := len(f.s.Denials)
	if n == 0 || f.s.Height >= tall {
		f.labelled("decisions", allowed)
		for _, d := range f.s.Denials[max(0, n-2):] {
			f.add(strings.Repeat(" ", label+1) + f.th.Warn.Render("✗ "+report.Clean(d.Type)) + "  " + f.th.Dim.Render(report.Clean(d.Reason)))
		}
		return
	}
	f.labelled("decisions", allowed+f.th.Dim.Render(": "+report.Clean(f.s.Denials[n-1].Reason)))
}

// weeks is the table so far, and beside it, where there is room, its graph.
func (f *frame) weeks(room int) {
	rows := f.s.Fold.Weeks
	t := report.Table{Width: min(f.width-1, tableSize), Theme: f.th}
	space := room - len(f.lines) - 3 // a blank line and the head
	if len(rows) == 0 || space < 1 {
		return
	}
	hidden := max(0, len(rows)-space)
	lines := t.Head(hidden)
	for _, w := range rows[hidden:] {
		lines = append(lines, t.Row(w))
	}
	size := f.width - 1 - tableSize - gap
	f.add("")
	if size >= minGraph {
		graph := f.graph(rows, min(size, 60), min(14, space))
		for len(lines) < len(graph) {
			lines = append(lines, "")
		}
		for i, g := range graph {
			lines[i] = pad(lines[i], tableSize+gap) + g
		}
	}
	for _, l := range lines {
		f.add(" " + l)
	}
}

// graph draws the log loss of both models by week.
func (f *frame) graph(weeks []report.Week, width, height int) []string {
	if len(weeks) < 2 || height < 4 {
		return nil
	}
	var frozen, loop []float64
	for _, w := range weeks {
		frozen, loop = append(frozen, float64(w.Frozen.LogLoss)), append(loop, float64(w.Loop.LogLoss))
	}
	plot := asciigraph.PlotMany([][]float64{frozen, loop}, asciigraph.Height(height-3), asciigraph.Width(width-10),
		asciigraph.Precision(3), asciigraph.SeriesColors(f.look.Frozen, f.look.Loop))
	key := f.th.Dim.Render("log loss by week   ─ frozen") + "  " + f.th.Accent.Render("─ loop")
	out := []string{key, ""}
	for l := range strings.SplitSeq(plot, "\n") {
		out = append(out, ansi.Truncate(l, width, ""))
	}
	return out
}

// Sparkline draws the newest size values, scaled to their greatest.
func Sparkline(values []float64, size int) string {
	if size <= 0 {
		return ""
	}
	values = values[max(0, len(values)-size):]
	top := 0.0
	for _, v := range values {
		top = max(top, v)
	}
	levels := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, v := range values {
		i := 0
		if top > 0 && v > 0 {
			i = min(len(levels)-1, int(v/top*float64(len(levels))))
		}
		b.WriteRune(levels[i])
	}
	return b.String()
}

func pad(s string, n int) string  { return s + strings.Repeat(" ", max(0, n-lipgloss.Width(s))) }
func lead(s string, n int) string { return strings.Repeat(" ", max(0, n-lipgloss.Width(s))) + s }
