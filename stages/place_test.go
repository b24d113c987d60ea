package stages_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
)

func TestStageIsRunWhereItIsRouted(t *testing.T) {
	for _, c := range []struct {
		route         string
		class, region string
		want          string // done, elsewhere or refused
	}{
		{"", "", "", "done"},
		{"", "gpu", "eu", "done"},
		{"workers=gpu", "gpu", "", "done"},
		{"region=eu&workers=gpu", "gpu", "eu", "done"},
		{"workers=gpu", "", "", "elsewhere"},
		{"region=eu&workers=gpu", "gpu", "us", "elsewhere"},
		{"region=eu", "gpu", "", "elsewhere"},
		{"tier=cold", "", "", "refused"},
		{"pipeline=other", "", "", "refused"},
		{"where=there", "", "", "refused"},
	} {
		t.Run(c.route+" at "+c.class+" "+c.region, func(t *testing.T) {
			w := newWorld(t, denying{func(ev *events.Event) string {
				if ev.Type() == events.TypeStageStarted && c.route != "" {
					ev.SetExtension(events.ExtRoute, c.route)
				}
				return ""
			}})
			ran := false
			s := stages.Func(func(context.Context, *stages.Task) error { ran = true; return nil })
			_, err := w.process().Execute(w.ctx, s, assignment(1), stages.Hooks{Report: func(stages.Progress) {}, Class: c.class, Region: c.region})
			var elsewhere *stages.ElsewhereError
			got := "done"
			switch {
			case errors.As(err, &elsewhere):
				got = "elsewhere"
				if elsewhere.Route.String() != c.route || stages.IsPermanent(err) {
					t.Errorf("%v", err)
				}
			case stages.IsPermanent(err):
				got = "refused"
			case err != nil:
				t.Fatal(err)
			}
			if got != c.want || ran != (c.want == "done") {
				t.Errorf("%s, want %s; the stage ran: %t; %v", got, c.want, ran, err)
			}
			if started := len(w.published(events.TypeStageStarted)); started > 0 != ran {
				t.Errorf("%d times announced as started", started)
			}
		})
	}
}
