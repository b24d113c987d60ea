package workflows

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
)

// ErrNobody means that no worker is where governance sends a run or a stage.
var ErrNobody = errors.New("no worker is there")

// errTypeElsewhere is the type of an attempt's error that governance sends to other
// workers. Only it moves a stage, and no history from before has it.
const errTypeElsewhere = "stokehold.Elsewhere"

const placeActivity = "stokehold.place"

// maxMoves bounds how often one stage may be sent elsewhere.
const maxMoves = 4

// Place says which workers do the stages of a run: those of a class, those in a
// region, or those that are both. The zero Place is any worker of the task queue.
type Place struct {
	Workers string `json:"workers,omitempty"` // class
	Region  string `json:"region,omitempty"`
}

// IsZero reports whether any worker will do.
func (p Place) IsZero() bool { return p == Place{} }

// String is "class gpu in region eu", say.
func (p Place) String() string {
	switch {
	case p.IsZero():
		return "anywhere"
	case p.Region == "":
		return "class " + p.Workers
	case p.Workers == "":
		return "region " + p.Region
	}
	return "class " + p.Workers + " in region " + p.Region
}

func placeOf(r events.Routing) Place { return Place{Workers: r.Workers, Region: r.Region} }

// over is p where it says something, and base elsewhere.
func (p Place) over(base Place) Place {
	if p.Workers == "" {
		p.Workers = base.Workers
	}
	if p.Region == "" {
		p.Region = base.Region
	}
	return p
}

// queue is the task queue of the workers of a place, beside the base queue that all
// workers serve.
func (p Place) queue(base string) string {
	if p.IsZero() {
		return base
	}
	return base + "@" + events.Routing{Workers: p.Workers, Region: p.Region}.String()
}

// places are those that a worker of a class and region serves.
func (p Place) places() []Place {
	var out []Place
	for _, q := range []Place{{Workers: p.Workers}, {Region: p.Region}, p} {
		if !q.IsZero() && !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	return out
}

var placeForm = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

func (p Place) faults() []error {
	var faults []error
	for what, name := range map[string]string{"Class": p.Workers, "Region": p.Region} {
		if name != "" && !placeForm.MatchString(name) {
			faults = append(faults, fmt.Errorf("workflows: WorkerConfig.%s %q: use lower-case letters, digits, - and ., as policies do", what, name))
		}
	}
	return faults
}

// somebody returns ErrNobody unless a worker of the place has asked for work in the
// last minutes.
func (p Place) somebody(ctx context.Context, c client.Client, base string) error {
	if p.IsZero() {
		return nil
	}
	resp, err := c.DescribeTaskQueue(ctx, p.queue(base), enums.TASK_QUEUE_TYPE_ACTIVITY)
	switch {
	case err != nil:
		return fmt.Errorf("workers of %s: %w", p, explain(err))
	case len(resp.GetPollers()) == 0:
		return fmt.Errorf("%w: of %s: start one with this class and region, or change the policy that routes there", ErrNobody, p)
	}
	return nil
}

// place is the local activity that looks for workers of a place.
func (a *activities) place(ctx context.Context, p Place) error {
	err := p.somebody(ctx, a.client, a.queue)
	if errors.Is(err, ErrNobody) {
		return temporal.NewNonRetryableApplicationError(err.Error(), errTypePermanent, err)
	}
	return err
}

// elsewhereError is what an attempt ends with that governance sends to other
// workers.
func elsewhereError(f stageFailure, e *stages.ElsewhereError) error {
	return temporal.NewApplicationErrorWithOptions(f.Reason, errTypeElsewhere, temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{f, placeOf(e.Route)}, Category: temporal.ApplicationErrorCategoryBenign,
	})
}

// mayMove reports whether a stage's error is that it must be done elsewhere, and
// prepares that. Where nobody is the stage fails.
func (in *interpreter) mayMove(ctx workflow.Context, s *stageRun) bool {
	var app *temporal.ApplicationError
	if in.failed != nil || !errors.As(s.err, &app) || app.Type() != errTypeElsewhere {
		return false
	}
	var f stageFailure
	var to Place
	if app.Details(&f, &to) != nil || to.IsZero() || s.moves >= maxMoves {
		return false
	}
	now := s.place.over(in.args.Input.Place)
	if to = to.over(now); to == now {
		return false // it was there
	}
	if err := workflow.ExecuteLocalActivity(local(ctx, clip("look for workers of "+to.String(), 190)), placeActivity, to).Get(ctx, nil); err != nil {
		s.err = temporal.NewNonRetryableApplicationError(
			fmt.Sprintf("%s: %s", f.Reason, reason(err)), errTypePermanent, err, stageFailure{Stage: f.Stage, Attempts: f.Attempts})
		return false
	}
	s.moves++
	s.place, s.assigned.Prior = to, f.Attempts
	return true
}

// queueOf is where a stage's attempts go.
func (in *interpreter) queueOf(ctx workflow.Context, s *stageRun) string {
	p := s.place.over(in.args.Input.Place)
	if p.IsZero() {
		return in.queue
	}
	return p.queue(workflow.GetInfo(ctx).TaskQueueName)
}
