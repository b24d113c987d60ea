// Package deploy puts models into service: the stage that asks governance to
// promote a challenger, and the server that answers predictions over HTTP.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/evaluate"
	"github.com/stokehold/stokehold/stages/train"
)

// Outcomes, in the note "outcome".
const (
	Promoted = "promoted"
	Refused  = "refused"
	Kept     = "kept" // the version is the champion already
)

// Stage measures the version that its model input brings and the champion on the
// same rows, and asks to promote it: it publishes model.promotion.requested, and
// whether governance allows that event is the gate. Allowed: the alias champion
// moves, unless it moved meanwhile. Denied, or a metric is not a number: the
// version is refused and kept with the reason. Neither is a failure of the run.
type Stage struct {
	Features string
	Labels   string
	Target   train.Target
	Window   train.Window                          // the rows to compare on; default train.FromTo
	At       func(*stages.Task) (time.Time, error) // event time of the request; nil: now
	Kinds    train.Kinds                           // nil: train.Builtin()
	Registry train.Registry                        // nil: the task's
}

// Run implements stages.Stage. Notes: "outcome", "reason", "champion" (before)
// and "version"; metrics: those of both, prefixed challenger_ and champion_.
func (s *Stage) Run(ctx context.Context, task *stages.Task) error {
	d, err := s.prepare(ctx, task)
	if err != nil {
		return err
	}
	if d.champion.ID == d.challenger.ID {
		return d.complete(ctx)
	}
	if err := d.registry.Promote(ctx, d.promotion(models.Challenger, d.previousChallenger, "asks for promotion")); err != nil {
		return err
	}
	if err := d.measure(ctx, s); err != nil {
		return err
	}
	if bad := d.notFinite(); bad != "" {
		return d.refuse(ctx, bad, "")
	}
	var at time.Time
	if s.At != nil {
		if at, err = s.At(task); err != nil {
			return err
		}
	}
	// The key names both versions: a retry that finds another champion asks anew.
	key := "promotion-" + d.challenger.Short() + "-" + d.champion.Short()
	err = task.Publish(ctx, events.TypePromotionRequested, d.challenger.Model, key, at, d.request())
	switch {
	case errors.Is(err, events.ErrDenied):
		reason, policy := why(err)
		return d.refuse(ctx, reason, policy)
	case err != nil:
		return err
	}
	reason := d.summary()
	err = d.registry.Promote(ctx, d.promotion(models.Champion, d.champion.ID, reason))
	if errors.Is(err, models.ErrConflict) {
		return fmt.Errorf("the champion changed during the comparison, which is to be repeated: %w", err)
	}
	if errors.Is(err, models.ErrMetrics) {
		return d.refuse(ctx, err.Error(), "")
	}
	if err != nil {
		return err
	}
	return d.finish(Promoted, reason)
}

// duel is one comparison.
type duel struct {
	task                 *stages.Task
	registry             train.Registry
	kinds                train.Kinds
	challenger, champion models.Version // champion is empty when there is none
	previousChallenger   string
	scores               [2]evaluate.Scores // challenger's, champion's
	rows                 int
}

func (s *Stage) prepare(ctx context.Context, task *stages.Task) (*duel, error) {
	d := &duel{task: task, registry: s.Registry, kinds: s.Kinds}
	if d.registry == nil {
		d.registry = task.Models()
	}
	if d.kinds == nil {
		d.kinds = train.Builtin()
	}
	var err error
	for _, b := range task.Inputs() {
		if b.Model == "" || b.Version == "" {
			continue
		}
		if d.challenger, err = d.registry.Get(ctx, b.Model, b.Version); err != nil {
			return nil, err
		}
		break
	}
	if d.challenger.ID == "" {
		return nil, stages.Permanent(errors.New("deploy: no model version among the inputs: wire a model into the stage"))
	}
	d.champion, err = d.registry.Alias(ctx, d.challenger.Model, models.Champion)
	if err != nil && !errors.Is(err, models.ErrNotFound) {
		return nil, err
	}
	previous, err := d.registry.Alias(ctx, d.challenger.Model, models.Challenger)
	if err != nil && !errors.Is(err, models.ErrNotFound) {
		return nil, err
	}
	d.previousChallenger = previous.ID
	task.Note("version", d.challenger.ID)
	task.Note("champion", d.champion.ID)
	return d, nil
}

// complete is for a version that is the champion already: made again of the same
// rows, or promoted by an attempt that was cut off afterwards. Promoting it again
// finishes what that attempt may have left, such as announcing it.
func (d *duel) complete(ctx context.Context) error {
	outcome, reason := Kept, "the version is the champion"
	if d.challenger.Lineage.Run == d.task.Run {
		outcome, reason = Promoted, "promoted by an earlier attempt"
	}
	if d.challenger.Reason != "" {
		reason = d.challenger.Reason
	}
	// Without a reason of its own the registry keeps that of the attempt cut off.
	if err := d.registry.Promote(ctx, d.promotion(models.Champion, d.champion.ID, d.challenger.Reason)); err != nil {
		return err
	}
	return d.finish(outcome, reason)
}

func (d *duel) promotion(alias, previous, reason string) models.Promotion {
	return models.Promotion{
		Model: d.challenger.Model, Alias: alias, ID: d.challenger.ID, Previous: previous,
		Run: d.task.Run, Cause: d.task.Cause, Reason: reason,
	}
}

func (d *duel) measure(ctx context.Context, s *Stage) error {
	window := s.Window
	if window == nil {
		window = train.FromTo
	}
	from, to, err := window(d.task)
	if err != nil {
		return err
	}
	examples, err := train.ReadExamples(ctx, d.task, s.Features, s.Labels, from, to, s.Target)
	if err != nil {
		return err
	}
	d.rows = examples.Rows()
	for i, v := range []models.Version{d.challenger, d.champion} {
		if v.ID == "" {
			continue
		}
		_, p, err := train.Open(ctx, d.registry, d.kinds, v.Model, v.ID)
		if err != nil {
			return err
		}
		d.scores[i], err = evaluate.Of(p, examples)
		if err != nil {
			if i == 0 {
				// A challenger that cannot predict is refused, not promoted and not retried.
				d.scores[0] = evaluate.Scores{LogLoss: math.NaN(), AUC: math.NaN()}
				d.task.Log.Warn("the challenger cannot be measured", "version", v.Short(), "error", err)
				continue
			}
			return stages.Permanent(fmt.Errorf("champion %s of %s: %w", v.Short(), v.Model, err))
		}
		for name, value := range d.scores[i].Map() {
			d.task.Metric([]string{"challenger_", "champion_"}[i]+name, value)
		}
	}
	return nil
}

// notFinite says which metric cannot be compared, "" if all can.
func (d *duel) notFinite() string {
	sides := []string{"challenger", "champion"}
	if d.champion.ID == "" {
		sides = sides[:1]
	}
	for i, side := range sides {
		for _, m := range []struct {
			name  string
			value float64
		}{{"log loss", d.scores[i].LogLoss}, {"AUC", d.scores[i].AUC}, {"Brier score", d.scores[i].Brier}} {
			if math.IsNaN(m.value) || math.IsInf(m.value, 0) {
				return fmt.Sprintf("%s of the %s is %v on %d rows: nothing can be compared", m.name, side, m.value, d.rows)
			}
		}
	}
	return ""
}

func (d *duel) request() events.PromotionRequested {
	r := events.PromotionRequested{
		Model: d.challenger.Model, Challenger: d.challenger.ID, Champion: d.champion.ID,
		Run: d.task.Run, Cause: d.task.Cause, Rows: int64(d.rows),
	}
	r.Metrics.Challenger = d.scores[0].Map()
	if d.champion.ID != "" {
		r.Metrics.Champion = d.scores[1].Map()
	}
	return r
}

func (d *duel) summary() string {
	c := d.scores[0]
	if d.champion.ID == "" {
		return fmt.Sprintf("first model: log loss %.4f, AUC %.4f on %d rows", c.LogLoss, c.AUC, d.rows)
	}
	o := d.scores[1]
	return fmt.Sprintf("log loss %.4f against %.4f, AUC %.4f against %.4f on %d rows", c.LogLoss, o.LogLoss, c.AUC, o.AUC, d.rows)
}

func (d *duel) refuse(ctx context.Context, reason, policy string) error {
	err := d.registry.Refuse(ctx, d.promotion(models.Champion, d.champion.ID, reason), policy)
	if err != nil {
		return err
	}
	d.task.Note("policy", policy)
	return d.finish(Refused, reason)
}

func (d *duel) finish(outcome, reason string) error {
	d.task.Note("outcome", outcome)
	d.task.Note("reason", reason)
	d.task.Progress(1, 1, outcome+": "+reason)
	return nil
}

// why is the verdict's reason and rule.
func why(err error) (reason, policy string) {
	var denied *events.DeniedError
	if errors.As(err, &denied) {
		reason, policy = denied.Verdict.Reason, denied.Verdict.Policy
	}
	if reason == "" {
		reason = err.Error()
	}
	return reason, policy
}
