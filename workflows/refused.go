package workflows

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
)

// ErrMoveRefused means that a migration has come to its end, and that batches were
// refused: governance denied their moves, or a pin, the endpoint or their own state
// keeps them. The result says which and why; the others have moved.
var ErrMoveRefused = errors.New("batches were not moved")

// Refusal is why batches From..To-1 stayed where they were.
type Refusal struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	Why  string `json:"why"`
}

const (
	// maxRefusals bounds what is told of one migration: what comes after is counted, and
	// the last refusal covers it.
	maxRefusals = 64
	// maxWhyBytes bounds each reason, saidRefusals how many are in the text of the error.
	maxWhyBytes  = 240
	saidRefusals = 5
)

// MigrationResult says what was done.
type MigrationResult struct {
	Dataset string `json:"dataset"`
	Moved   uint64 `json:"moved"`             // batches in their place now
	Refused uint64 `json:"refused,omitempty"` // batches that stayed where they were
	// Refusals are those, in sequence, at most 64. If there were more, the last covers
	// the others, and what lies in between.
	Refusals []Refusal `json:"refusals,omitempty"`
}

func (r *MigrationResult) refuse(no Refusal) {
	r.Refused += no.To - no.From
	r.list(no)
}

func (r *MigrationResult) list(no Refusal) {
	n := len(r.Refusals)
	switch {
	case n > 0 && r.Refusals[n-1].To == no.From && r.Refusals[n-1].Why == no.Why:
		r.Refusals[n-1].To = no.To
	case n == maxRefusals:
		const others = ", and others"
		last := &r.Refusals[n-1]
		if last.To = no.To; !strings.HasSuffix(last.Why, others) {
			last.Why += others
		}
	default:
		r.Refusals = append(r.Refusals, no)
	}
}

// add counts what an activity has done with its part.
func (r *MigrationResult) add(part MigrationResult) {
	r.Refused += part.Refused
	for _, no := range part.Refusals {
		r.list(no)
	}
}

// covers reports whether a batch was refused.
func (r *MigrationResult) covers(seq uint64) bool {
	for _, no := range r.Refusals {
		if seq >= no.From && seq < no.To {
			return true
		}
	}
	return false
}

// err is how the workflow ends: with the result, whatever that is.
func (r MigrationResult) err() error {
	if r.Refused == 0 {
		return nil
	}
	said := make([]string, 0, saidRefusals+1)
	for i, no := range r.Refusals {
		if i == saidRefusals {
			said = append(said, fmt.Sprintf("and %d more", len(r.Refusals)-i))
			break
		}
		at := strconv.FormatUint(no.From, 10)
		if no.To != no.From+1 {
			at = fmt.Sprintf("%d to %d", no.From, no.To-1)
		}
		said = append(said, at+": "+no.Why)
	}
	msg := fmt.Sprintf("%s: %d of %d %v: %s", r.Dataset, r.Refused, r.Refused+r.Moved, ErrMoveRefused, strings.Join(said, "; "))
	return temporal.NewApplicationErrorWithOptions(msg, errTypePermanent, temporal.ApplicationErrorOptions{NonRetryable: true, Details: []any{r}})
}

// moveRefusedError is ErrMoveRefused with what the workflow said at its end, and
// without the names that Temporal puts around it.
type moveRefusedError struct{ cause error }

func (e *moveRefusedError) Error() string {
	var app *temporal.ApplicationError
	if errors.As(e.cause, &app) {
		return app.Message()
	}
	return e.cause.Error()
}

func (e *moveRefusedError) Unwrap() []error { return []error{ErrMoveRefused, e.cause} }

// refusedBy returns what a migration that ended with err has left; ok is false if
// it ended for another reason.
func refusedBy(err error) (r MigrationResult, ok bool) {
	var app *temporal.ApplicationError
	if !errors.As(err, &app) || !app.HasDetails() {
		return r, false
	}
	ok = app.Details(&r) == nil && r.Refused > 0
	return r, ok
}

// refusedMove reports whether a move or an expiry was refused by what does not pass
// by itself.
func refusedMove(err error) bool {
	if stages.IsPermanent(err) {
		return true
	}
	for _, no := range []error{tiers.ErrPinned, tiers.ErrNotDurable, tiers.ErrMigration, tiers.ErrExpired, tiers.ErrName} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// whyRefused is the reason alone, the same for batches that are refused for the same.
func whyRefused(err error) string {
	var denied *events.DeniedError
	if errors.As(err, &denied) {
		same := *denied
		same.Verdict.DecisionID = "" // each batch has its own
		return clip(same.Error(), maxWhyBytes)
	}
	for at := new(tiers.Error); errors.As(err, &at); {
		err = at.Err // without the batch's name
	}
	return clip(err.Error(), maxWhyBytes)
}
