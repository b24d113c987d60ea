package governance

import (
	"regexp"
	"strings"
)

var longNumber = regexp.MustCompile(`[0-9]{4,}(?:\.[0-9]+)?`)

// withoutData takes out of an evaluation's error what the event, and not the author
// of the policy, put there: every quoted part and every long number that the
// expression does not hold itself. A decision's reason is kept for months, and read by people who may not
// see the event.
func withoutData(msg, src string) string {
	msg = longNumber.ReplaceAllStringFunc(msg, func(n string) string {
		if strings.Contains(src, n) {
			return n
		}
		return "…"
	})
	if !strings.ContainsAny(msg, "\"'`") {
		return msg
	}
	var b strings.Builder
	for msg != "" {
		i := strings.IndexAny(msg, "\"'`")
		if i < 0 {
			break
		}
		quote := msg[i]
		end := closing(msg[i+1:], quote)
		inner := msg[i+1:][:end]
		b.WriteString(msg[:i])
		b.WriteByte(quote)
		if strings.Contains(src, inner) {
			b.WriteString(inner)
		} else {
			b.WriteString("…")
		}
		b.WriteByte(quote)
		msg = strings.TrimPrefix(msg[i+1+end:], string(quote))
	}
	b.WriteString(msg)
	return b.String()
}

// closing returns where a quoted part ends, as Go's %q writes it: at the quote that
// no backslash is before, or else at the end.
func closing(s string, quote byte) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case quote:
			return i
		}
	}
	return len(s)
}

// sources is the text of an expression and of the variables that it may read.
func (s *evalState) sources(p *program) string {
	var b strings.Builder
	b.WriteString(p.src)
	for i := range s.vars {
		b.WriteString("\n")
		b.WriteString(s.vars[i].prg.src)
	}
	return b.String()
}
