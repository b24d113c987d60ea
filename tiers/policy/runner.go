package policy

import (
	"context"
	"log/slog"
	"time"
)

// Defaults of a Runner.
const (
	DefaultEvery = time.Minute
	// planBatches is how many batches one step looks at.
	planBatches = 4096
)

// Tiers is what a Runner and a Keeper need of a *tiers.Store.
type Tiers interface {
	Catalog
	Leases
	WarmBytes(ctx context.Context) (int64, error)
	Expire(ctx context.Context, dataset string, from, to uint64, reason string) (int, error)
}

// Runner plans what the rules of the policies want done, a step at a time. It keeps
// no state: whoever calls it has the cursor. Safe for concurrent use.
type Runner struct {
	Store    Tiers
	Policies func() *Set // asked at each step
	Quota    int64       // bytes of the warm directory; 0: none, and pressure is 0
	// Every is the time between the end of a pass and the next; default one minute.
	Every time.Duration
	// Grace is that of the migrations that evict; 0: their default.
	Grace time.Duration
	Clock func() time.Time // default time.Now
	Log   *slog.Logger
}

// Step is one step of a pass over the catalog.
type Step struct {
	Tasks []Task        `json:"tasks,omitempty"`
	Next  Cursor        `json:"next,omitzero"`
	Done  bool          `json:"done,omitempty"` // the pass is over; Next is the beginning
	Every time.Duration `json:"every"`          // until the next pass
	Grace time.Duration `json:"grace,omitempty"`
}

// PlanTiers makes the step from a cursor on.
func (r *Runner) PlanTiers(ctx context.Context, at Cursor) (Step, error) {
	step := Step{Every: r.Every, Grace: r.Grace}
	if step.Every <= 0 {
		step.Every = DefaultEvery
	}
	set := r.Policies()
	if set.Len() == 0 {
		step.Done = true
		return step, nil
	}
	cond := Conditions{Now: time.Now()}
	cond.Next, _ = Uses(ctx, r.Store, r.log())
	if r.Clock != nil {
		cond.Now = r.Clock()
	}
	if r.Quota > 0 {
		used, err := r.Store.WarmBytes(ctx)
		if err != nil {
			return step, err
		}
		cond.Pressure = float64(used) / float64(r.Quota)
	}
	var faults, err error
	step.Tasks, step.Next, step.Done, faults, err = set.Plan(ctx, r.Store, at, planBatches, cond)
	if faults != nil {
		r.log().WarnContext(ctx, "a condition of the tier policies cannot be evaluated; its rule decides nothing", "error", faults)
	}
	return step, err
}

// ExpireTier carries out a task whose action is Expire. Repeatable.
func (r *Runner) ExpireTier(ctx context.Context, t Task) (int, error) {
	return r.Store.Expire(ctx, t.Dataset, t.From, t.To, t.Decision.Reason())
}

func (r *Runner) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}
