package stokehold

import (
	"context"
	"fmt"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/approval"
)

// Facts returns sources of what a deployment knows now of batches, datasets, models
// and actors, as its processes ask for when they judge. Not what they were told
// when an event was judged, which nobody records: an alias may have moved since.
//
// missing says for each variable that has no source why, by name; policies then see
// what the event says of it, and no more. The sources end with the desk.
func (d *PolicyDesk) Facts(ctx context.Context) (f governance.Facts, missing map[string]string) {
	missing = map[string]string{
		"run": "only the event's own attributes", "worker": "only the process that judged it knows it",
	}
	all := d.app.facts()
	if err := d.openFacts(ctx); err != nil {
		for _, name := range []string{"batch", "dataset", "model", "champion"} {
			missing[name] = err.Error()
		}
	} else {
		f.Batch, f.Dataset, f.Model, f.Champion = all.Batch, all.Dataset, all.Model, all.Champion
	}
	if err := d.openBudgets(ctx); err != nil {
		missing["budget"] = err.Error()
	} else {
		f.Budget = all.Budget
	}
	switch who, err := d.actors(); {
	case err != nil:
		missing["actor"] = err.Error()
	case who == nil:
		missing["actor"] = "no document of actors is configured"
	default:
		f.Actor = who.Facts
	}
	return f, missing
}

// openBudgets opens the limits and the ledger, to look only.
func (d *PolicyDesk) openBudgets(ctx context.Context) error {
	if d.app.Budgets != nil {
		return nil
	}
	if err := d.app.openBudgets(ctx, options{observing: true}); err != nil {
		d.app.Budgets = nil
		return fmt.Errorf("the budgets cannot be read: %w", err)
	}
	return nil
}

func (d *PolicyDesk) actors() (*approval.Directory, error) {
	if d.app.cfg.Actors == "" {
		return nil, nil
	}
	return approval.ReadDirectory(d.app.cfg.Actors)
}

// openFacts opens the registry of models and the catalog, to look only.
func (d *PolicyDesk) openFacts(ctx context.Context) error {
	if d.app.Store != nil {
		return nil
	}
	bus, err := d.Read(ctx)
	if err != nil {
		return fmt.Errorf("the catalog cannot be read: %w", err)
	}
	d.app.Bus = bus
	d.app.onClose(bus.Close)
	if err := d.app.openData(ctx, options{observing: true, data: true}); err != nil {
		d.app.Store = nil
		return fmt.Errorf("the catalog cannot be read: %w", err)
	}
	return nil
}
