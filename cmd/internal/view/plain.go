package view

import (
	"fmt"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
)

// Line returns what m is worth saying where there is no terminal, or "". s is the
// state after m. One line, no control characters.
func Line(s State, m Msg) string {
	text := ""
	switch m := m.(type) {
	case Started:
		text = "stack is up"
		if m.UI != "" {
			text += ", Temporal UI " + m.UI
		}
	case Note:
		text = m.Text
	case Denied:
		text = fmt.Sprintf("denied %s %s: %s", m.Type, m.Subject, m.Reason)
		if m.Policy != "" {
			text += " (" + m.Policy + ")"
		}
	case Stopping:
		text = "stopping"
	case Done:
		text = "done"
	case Event:
		text = eventLine(m)
	}
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%7.1fs  %s", s.elapsed().Seconds(), report.Clean(text))
}

func eventLine(d Event) string {
	switch d.Type() {
	case events.TypeRunStarted:
		if e, ok := decode[events.RunStarted](d.Delivery); ok {
			by := ""
			if e.Trigger != "" {
				by = ", by " + e.Trigger
			}
			return fmt.Sprintf("run %s of %s started%s", e.Run, e.Pipeline, by)
		}
	case events.TypeRunFailed:
		if e, ok := decode[events.RunFailed](d.Delivery); ok {
			return fmt.Sprintf("run %s of %s failed: %s", e.Run, e.Pipeline, e.Reason)
		}
	case events.TypeStageStarted:
		if e, ok := decode[events.StageStarted](d.Delivery); ok && e.Attempt > 1 {
			return fmt.Sprintf("stage %s of %s: attempt %d", e.Stage, e.Run, e.Attempt)
		}
	case events.TypeDriftDetected:
		if e, ok := decode[events.DriftDetected](d.Delivery); ok {
			return fmt.Sprintf("drift of %s in %s: %s %.4g, threshold %.4g", e.Model, e.Window, e.Detector, e.Statistic, e.Threshold)
		}
	case events.TypeModelPromoted:
		if e, ok := decode[events.ModelPromoted](d.Delivery); ok {
			return fmt.Sprintf("promoted %s %s to %s", e.Model, report.Short(e.Version), e.Alias)
		}
	case events.TypeModelRefused:
		if e, ok := decode[events.ModelRefused](d.Delivery); ok {
			return fmt.Sprintf("refused %s %s: %s", e.Model, report.Short(e.Version), e.Reason)
		}
	case events.TypeTriggerSuppressed:
		if e, ok := decode[events.TriggerSuppressed](d.Delivery); ok {
			return fmt.Sprintf("trigger %s started nothing: %s", e.Trigger, e.Reason)
		}
	case report.TypeWeekSettled:
		if w, ok := decode[report.Week](d.Delivery); ok {
			return fmt.Sprintf("week %d: %s rows, log loss %v frozen %v loop, AUC %v frozen %v loop",
				w.Week, report.Count(w.Rows), w.Frozen.LogLoss, w.Loop.LogLoss, w.Frozen.AUC, w.Loop.AUC)
		}
	}
	return ""
}
