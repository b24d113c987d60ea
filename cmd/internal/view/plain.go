package view

import (
	"fmt"

	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/stages/drift"
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
		text = eventLine(s, m)
	}
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%7.1fs  %s", s.elapsed().Seconds(), report.Clean(text))
}

func eventLine(s State, d Event) string {
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
	case flights.TypeWeekClosed:
		// The fold has it in the report's words; it is not always the newest.
		e, ok := decode[drift.Report](d.Delivery)
		if !ok {
			return ""
		}
		for _, w := range s.Fold.Weeks {
			if uint64(max(0, w.Week)) == e.Key {
				return fmt.Sprintf("week %d: %s rows, log loss %v frozen %v loop, AUC %v frozen %v loop",
					w.Week, report.Count(w.Rows), w.Frozen.LogLoss, w.Loop.LogLoss, w.Frozen.AUC, w.Loop.AUC)
			}
		}
	}
	return ""
}
