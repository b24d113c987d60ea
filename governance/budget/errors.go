package budget

import (
	"errors"
	"fmt"
)

// Sentinels for the decisions a caller makes.
var (
	// ErrUnavailable: the ledger did not answer, or is behind, so that nobody can
	// tell what is left.
	ErrUnavailable = errors.New("the ledger of budgets is unavailable")
	// ErrInvalid: a document, a change or a report that cannot be taken.
	ErrInvalid = errors.New("invalid budget")
	// ErrConflict: two reports of one attempt contradict one another, or somebody else
	// changed the document first.
	ErrConflict = errors.New("conflict")
	// ErrNotFound: there is no document, or no budget of that scope.
	ErrNotFound = errors.New("no such budget")
	// ErrCorrupt: a bucket holds what this package does not write.
	ErrCorrupt = errors.New("unreadable record of budgets")
	// ErrExhausted: a budget has nothing left. It comes in an *ExhaustedError.
	ErrExhausted = errors.New("budget exhausted")
	// ErrConfig: a configuration is faulty.
	ErrConfig = errors.New("invalid configuration of budgets")
	// ErrClosed: the ledger was closed.
	ErrClosed = errors.New("the ledger of budgets is closed")
)

var errOthers = fmt.Errorf("%w: somebody else changed the limits meanwhile: look at them and try again", ErrConflict)

// ExhaustedError says which budget has nothing left.
type ExhaustedError struct{ Balance Balance }

func (e *ExhaustedError) Error() string {
	b := e.Balance
	if b.Unpriced != "" {
		return fmt.Sprintf("%v: %s limits money, but accelerator %q has no price: add it to the prices (0 if it costs nothing)", ErrExhausted, b.Scope, b.Unpriced)
	}
	s := fmt.Sprintf("%v: %s has spent %s of %s %s", ErrExhausted, b.Scope, b.Spent, b.Limit, b.unit())
	switch {
	case b.Window != PerRun && !b.Renews.IsZero():
		s += fmt.Sprintf(" this %s, until %s", b.Window, b.Renews.Format("2006-01-02 15:04 MST"))
	case b.Window == PerRun:
		s += " for the run"
	}
	return s
}

func (e *ExhaustedError) Unwrap() error { return ErrExhausted }
