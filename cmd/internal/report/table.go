package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
)

// MinWidth is the narrowest terminal that the table is laid out for; what does
// not fit a narrower one is cut off at the right.
const MinWidth = 80

// Table lays out one line per week.
type Table struct {
	Width int // of the terminal, in cells
	Theme Theme
}

// Column widths, in cells, right-aligned but for the outcome, which takes the rest.
const (
	wWeek, wFrom, wRows, wScore, wDelta = 4, 6, 7, 6, 7
	// what stands left of the outcome
	wFixed = wWeek + 1 + wFrom + 1 + wRows + 2*(2+wScore+1+wScore+1+wDelta) + 2
)

// Head returns the two header lines. hidden is how many earlier weeks are not shown.
func (t Table) Head(hidden int) []string {
	group := func(s string) string {
		return center(s, wScore+1+wScore+1+wDelta)
	}
	earlier := ""
	if hidden > 0 {
		earlier = fmt.Sprintf("… %d earlier", hidden)
	}
	top := left(" "+earlier, wWeek+1+wFrom+1+wRows) + "  " + group("log loss ↓") + "  " + group("AUC ↑") // the arrow: which way is better
	scores := "  " + right("frozen", wScore) + " " + right("loop", wScore) + " " + right("Δ", wDelta)
	sub := right("week", wWeek) + " " + left("from", wFrom) + " " + right("rows", wRows) + scores + scores + "  outcome"
	return []string{t.fit(t.Theme.Dim.Render(strings.TrimRight(top, " "))), t.fit(t.Theme.Dim.Render(sub))}
}

// Row returns the line of one week.
func (t Table) Row(w Week) string {
	from := ""
	if d, err := time.Parse("2006-01-02", w.From); err == nil {
		from = d.Format("Jan _2")
	}
	line := t.Theme.Text.Render(right(strconv.Itoa(w.Week), wWeek)) + " " + t.Theme.Dim.Render(left(from, wFrom)) + " " +
		right(Count(w.Rows), wRows) + t.pair(w.Frozen, w.Loop) + "  " + t.outcome(w)
	return t.fit(line)
}

// Rule is a line under the rows.
func (t Table) Rule() string {
	return t.Theme.Rule.Render(strings.Repeat("─", max(0, min(t.Width, wFixed+12))))
}

// Total returns the line of the row-weighted means.
func (t Table) Total(weeks []Week) string {
	frozen, loop, rows := means(weeks)
	return t.fit(right("mean", wWeek) + " " + left("", wFrom) + " " + right(Count(rows), wRows) + t.pair(frozen, loop))
}

func (t Table) pair(frozen, loop Score) string {
	return t.cells(frozen.LogLoss, loop.LogLoss, -1) + t.cells(frozen.AUC, loop.AUC, +1)
}

// cells shows both models and the loop's difference. better is the sign of a
// difference that is an improvement.
func (t Table) cells(frozen, loop Float, better float64) string {
	delta := t.Theme.Rule.Render(right("·", wDelta))
	if d := float64(loop) - float64(frozen); frozen.Finite() && loop.Finite() && math.Abs(d) >= 0.00005 {
		mark, style := "▲", t.Theme.Good
		if d < 0 {
			mark = "▼"
		}
		if d*better < 0 {
			style = t.Theme.Bad
		}
		delta = style.Render(right(fmt.Sprintf("%s%.4f", mark, math.Abs(d)), wDelta))
	}
	return "  " + t.Theme.Dim.Render(right(frozen.String(), wScore)) + " " + right(loop.String(), wScore) + " " + delta
}

func (t Table) outcome(w Week) string {
	var s string
	switch {
	case w.Promoted:
		s = t.Theme.Good.Render("✓ promoted")
	case w.Retrained:
		s = t.Theme.Bad.Render("✗ refused")
	case w.Drift:
		return t.Theme.Warn.Render("● drift") // said why below, or still going on
	default:
		return ""
	}
	if w.Drift {
		s = t.Theme.Warn.Render("● ") + s
	}
	return s
}

func (t Table) fit(s string) string { return ansi.Truncate(s, t.Width, "…") }

// Render writes everything that a person sees at the end of a run: the table,
// what was refused and why, and what moved. width is the terminal's.
func (r Report) Render(width int, th Theme) string {
	var b strings.Builder
	line := func(format string, args ...any) {
		b.WriteString(strings.TrimRight(ansi.Truncate(fmt.Sprintf(format, args...), width, "…"), " ") + "\n")
	}
	t := Table{Width: width, Theme: th}
	for _, l := range t.Head(0) {
		line("%s", l)
	}
	for _, w := range r.Weeks {
		line("%s", t.Row(w))
	}
	line("%s", t.Rule())
	line("%s", t.Total(r.Weeks))
	r.renderVerdict(line, th)
	r.renderReasons(line, th, width)
	r.renderCounts(line, th)
	return b.String()
}

func (r Report) renderVerdict(line func(string, ...any), th Theme) {
	frozen, loop, _ := r.Means()
	if len(r.Weeks) == 0 || !frozen.LogLoss.Finite() || !loop.LogLoss.Finite() {
		return
	}
	var retrained, promoted int
	for _, w := range r.Weeks {
		if w.Retrained {
			retrained++
		}
		if w.Promoted {
			promoted++
		}
	}
	gain := 100 * (float64(frozen.LogLoss) - float64(loop.LogLoss)) / float64(frozen.LogLoss)
	word, style := "lower", th.Good
	if gain < 0 {
		word, style = "higher", th.Bad
	}
	line("")
	line("The loop's log loss is %s than that of the frozen first model.",
		style.Render(fmt.Sprintf("%.1f %% %s", math.Abs(gain), word)))
	line("Retrained %s: %s, %s.", times(retrained), th.Good.Render(fmt.Sprintf("%d promoted", promoted)),
		th.Bad.Render(fmt.Sprintf("%d refused", retrained-promoted)))
}

func (r Report) renderReasons(line func(string, ...any), th Theme, width int) {
	headed := false
	for _, w := range r.Weeks {
		if w.Promoted || w.Reason == "" || !w.Drift && !w.Retrained {
			continue
		}
		if !headed {
			line("")
			line("%s", th.Title.Render("Why not promoted"))
			headed = true
		}
		lead := "  " + th.Dim.Render(left(fmt.Sprintf("week %d", w.Week), 9))
		for i, l := range strings.Split(ansi.Wordwrap(Clean(w.Reason), max(20, min(width, 110)-11), " "), "\n") {
			if i > 0 {
				lead = strings.Repeat(" ", 11)
			}
			line("%s%s", lead, l)
		}
	}
}

func (r Report) renderCounts(line func(string, ...any), th Theme) {
	row := func(name, format string, args ...any) {
		line("  %s%s", th.Dim.Render(left(name, 9)), fmt.Sprintf(format, args...))
	}
	copied := th.Good.Render("0 B of bodies copied between processes")
	if r.Batches.CopiedBytes > 0 {
		copied = th.Bad.Render(Bytes(r.Batches.CopiedBytes) + " of bodies copied between processes")
	}
	denied := th.Dim.Render("0 denied")
	if r.Events.Denied > 0 {
		denied = th.Warn.Render(Count(r.Events.Denied) + " denied")
	}
	line("")
	line("%s", th.Title.Render("What moved"))
	row("events", "%s published · %s judgements · %s", Count(r.Events.Published), Count(r.Events.Judged), denied)
	for _, rule := range r.Rules {
		if rule.Policy != "" {
			row("", "%s", Clean(rule.String()))
		}
	}
	row("batches", "%s published · %s leased by reference (%s)", Count(r.Batches.Published), Count(r.Batches.Leased), Bytes(r.Batches.BodyBytes))
	row("", "%s", copied)
	row("tiers", "%s hot · %s warm · %s cold · %s verified moves", Count(r.Tiers.Hot), Count(r.Tiers.Warm), Count(r.Tiers.Cold), Count(r.Tiers.Moved))
	for _, m := range r.Tiers.Moves {
		row("", "%s %s", Count(m.Count), m.what())
	}
	if n := r.Tiers.Reads; n.All() > 0 {
		share := func(k int64) string { return fmt.Sprintf("%.0f %%", 100*float64(k)/float64(n.All())) }
		row("reads", "%s · %s hot · %s warm · %s cold", Count(n.All()), share(n.Hot+n.Peer), share(n.Warm), share(n.Cold))
	}
	if a := r.Tiers.Ahead; a.Hits+a.Misses > 0 {
		row("ahead", "%s of %s batches there in time · stages waited %.1f s for the others", Count(a.Hits), Count(a.Hits+a.Misses), a.StallSeconds)
	}
	var champions strings.Builder
	for _, m := range r.Models {
		if m.Champion {
			champions.WriteString(" · champion " + th.Accent.Render(Short(m.ID)))
		}
	}
	row("models", "%d versions%s", len(r.Models), champions.String())
	row("time", "%.1f s · peak memory %s · seed %d", r.Seconds, Bytes(r.PeakMemoryBytes), r.Seed)
}

// what says where the batches went, and why.
func (m Move) what() string {
	s := "to " + Clean(m.To)
	if m.To == "expired" {
		s = m.To
	}
	if m.Reason != "" {
		s += " by " + Clean(m.Reason)
	}
	if m.Bytes > 0 {
		s += " · " + Bytes(m.Bytes)
	}
	return s
}

// String is the rule and its counts in one line.
func (r Rule) String() string {
	parts := []string{r.Policy + "/" + r.Rule}
	for _, action := range slices.Sorted(maps.Keys(r.Actions)) {
		parts = append(parts, Count(r.Actions[action])+" "+action)
	}
	if r.Noted > 0 {
		parts = append(parts, Count(r.Noted)+" noted")
	}
	return strings.Join(parts, " · ")
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// Short is the first 8 digits of a model version, for people.
func Short(id string) string { return id[:min(8, len(id))] }

// Count shows n with thousands separated.
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Number shows a measurement: whole numbers in full, others with four digits.
func Number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return Count(int64(v))
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

// Bytes shows n in binary units.
func Bytes(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/(1<<10), []string{"KiB", "MiB", "GiB", "TiB"}
	for v >= 1000 && len(units) > 1 {
		v, units = v/(1<<10), units[1:]
	}
	return fmt.Sprintf("%.1f %s", v, units[0])
}

// Clean makes text that came from outside safe to print on a terminal: one line,
// no control characters.
func Clean(s string) string {
	return strings.Join(strings.FieldsFunc(ansi.Strip(s), func(r rune) bool {
		return r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == ' ' ||
			r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
	}), " ")
}

func left(s string, n int) string  { return s + strings.Repeat(" ", max(0, n-lipgloss.Width(s))) }
func right(s string, n int) string { return strings.Repeat(" ", max(0, n-lipgloss.Width(s))) + s }

func center(s string, n int) string {
	pad := max(0, n-lipgloss.Width(s))
	return strings.Repeat(" ", pad/2) + s + strings.Repeat(" ", pad-pad/2)
}
