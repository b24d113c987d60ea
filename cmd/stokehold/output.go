package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"

	"github.com/stokehold/stokehold/cmd/internal/report"
)

const (
	asTable = "table"
	asJSON  = "json"
)

// outputFlag registers -o and returns how to read it.
func outputFlag(cmd *cobra.Command) func() (string, error) {
	v := cmd.Flags().StringP("output", "o", asTable, "`format`: table or json")
	return func() (string, error) {
		if *v != asTable && *v != asJSON {
			return "", usagef("%s: --output %q: want table or json", cmd.CommandPath(), *v)
		}
		return *v, nil
	}
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// grid is a table with aligned columns. Cells may hold styles.
type grid struct {
	head  []string
	right []int // columns to align right
	rows  [][]string
}

func (g *grid) add(cells ...string) { g.rows = append(g.rows, cells) }

func (g *grid) write(env *environment) error {
	th := env.theme()
	size := make([]int, len(g.head))
	for _, row := range append([][]string{g.head}, g.rows...) {
		for i, c := range row {
			size[i] = max(size[i], lipgloss.Width(c))
		}
	}
	line := func(cells []string, style lipgloss.Style) string {
		var b strings.Builder
		for i, c := range cells {
			fill := strings.Repeat(" ", size[i]-lipgloss.Width(c))
			if slices.Contains(g.right, i) {
				b.WriteString(fill + c)
			} else {
				b.WriteString(c + fill)
			}
			b.WriteString("  ")
		}
		s := strings.TrimRight(b.String(), " ")
		if env.Terminal { // a file or pipe gets everything
			s = ansi.Truncate(s, env.width(), "…")
		}
		return style.Render(s)
	}
	var b strings.Builder
	b.WriteString(line(g.head, th.Dim) + "\n")
	for _, row := range g.rows {
		b.WriteString(line(row, th.Text) + "\n")
	}
	if _, err := io.WriteString(env.Out, b.String()); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// when shows a time as people say it near now, and as a date otherwise.
func when(t, now time.Time) string {
	switch d := now.Sub(t); {
	case t.IsZero():
		return ""
	case d < 0 || d >= 48*time.Hour:
		return t.Local().Format("2006-01-02 15:04")
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// status colours a word by what it means.
func status(th report.Theme, s string) string {
	switch s {
	case "completed", "promoted", "approved":
		return th.Good.Render(s)
	case "failed", "terminated", "timed-out", "refused", "rejected":
		return th.Bad.Render(s)
	case "running", "pending":
		return th.Accent.Render(s)
	case "canceled", "expired":
		return th.Warn.Render(s)
	}
	return s
}
