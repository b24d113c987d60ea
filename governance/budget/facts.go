package budget

import (
	"context"
	"strings"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Facts is a source for governance.Facts.Budget: what the event's pipeline, its
// team and its run have spent, and may. Where a scope has budgets of two windows,
// each resource is of the one that is nearest to its end; without a limit, what
// was spent this month. Without a document nothing is known.
func (l *Ledger) Facts(ctx context.Context, ev *events.Event, known *governance.Budget) error {
	text := func(name string) string {
		s, _ := ev.Extensions()[name].(string)
		return s
	}
	pipeline, run := text(events.ExtPipeline), text(events.ExtRun)
	d, err := l.Document()
	if err != nil || d == nil || pipeline == "" {
		return err
	}
	left, err := l.Standing(ctx, pipeline, run)
	if err != nil {
		return err
	}
	spending := func(scope, name string, w Window) (*governance.Spending, error) {
		used, err := l.Spent(scope, w)
		if err != nil {
			return nil, err
		}
		s := governance.Spending{Name: name, Money: &governance.Amount{}, AcceleratorSeconds: &governance.Amount{}}
		for _, u := range used {
			s.Money.Spent += u.Money.Float()
			if u.Accelerator != CPU {
				s.AcceleratorSeconds.Spent += u.Seconds.Float()
			}
		}
		for _, b := range left.Balances {
			switch {
			case b.Scope != scope:
			case b.Resource == Money:
				nearest(s.Money, b)
			case b.Resource == AcceleratorSeconds:
				nearest(s.AcceleratorSeconds, b)
			}
		}
		return &s, nil
	}
	if known.Pipeline, err = spending("pipeline/"+pipeline, pipeline, Month); err != nil {
		return err
	}
	if team := d.Team(pipeline); team != "" {
		if known.Team, err = spending("team/"+team, team, Month); err != nil {
			return err
		}
	}
	if run != "" && !strings.ContainsAny(run, "*") {
		known.Run, err = spending("run/"+run, run, PerRun)
	}
	return err
}

// nearest keeps the balance of which less is left, as a share.
func nearest(a *governance.Amount, b Balance) {
	limit := b.Limit.Float()
	if a.Limit != nil && (*a.Limit-a.Spent)*limit <= b.Left().Float()**a.Limit {
		return
	}
	a.Spent, a.Limit = b.Spent.Float(), &limit
}
