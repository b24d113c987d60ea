package report

import (
	"charm.land/lipgloss/v2"
)

// Theme is the set of styles that the live view and the final table share. The
// zero Theme is plain text.
type Theme struct {
	Title, Text, Dim, Rule lipgloss.Style
	Good, Bad, Warn        lipgloss.Style
	Accent, Second         lipgloss.Style
}

// NewTheme returns the colours for a dark or a light terminal.
func NewTheme(dark bool) Theme {
	pick := lipgloss.LightDark(dark)
	fg := func(light, dark string) lipgloss.Style {
		return lipgloss.NewStyle().Foreground(pick(lipgloss.Color(light), lipgloss.Color(dark)))
	}
	return Theme{
		Title:  fg("#b3400a", "#ff9d5c").Bold(true),
		Text:   lipgloss.NewStyle(),
		Dim:    fg("#6c7078", "#808793"),
		Rule:   fg("#c9ccd2", "#3e434d"),
		Good:   fg("#197a3b", "#7fd88f"),
		Bad:    fg("#b42318", "#ff7b72"),
		Warn:   fg("#8a5a00", "#f2c464"),
		Accent: fg("#b3400a", "#ff9d5c"),
		Second: fg("#1f5fa8", "#79b8ff"),
	}
}
