package governance

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels for the decisions a caller makes.
var (
	// ErrPolicy: policies or an expression could not be loaded. Wrapped by
	// *LoadError and *PolicyError.
	ErrPolicy = errors.New("invalid policy")
	// ErrMissingField: an expression read a field that the event does not have.
	ErrMissingField = errors.New("missing field")
	// ErrData: the event's data could not be read as its type says.
	ErrData = errors.New("unreadable event data")
	// ErrLimit: an evaluation exceeded its cost, size or time limit.
	ErrLimit = errors.New("evaluation limit exceeded")
	// ErrFact: what an expression reads beside the event could not be had.
	ErrFact = errors.New("unknown fact")
	// ErrEval: an expression failed for another reason, e.g. a division by zero.
	ErrEval = errors.New("evaluation failed")
	// ErrLog: the decision log did not confirm the decisions as durable.
	ErrLog = errors.New("decision log unavailable")
	// ErrKey: a key or key ring is malformed.
	ErrKey = errors.New("invalid key")
	// ErrConfig: an Engine was configured without something it needs.
	ErrConfig = errors.New("invalid governance configuration")
)

// PolicyError is one fault of a policy file or expression. It wraps ErrPolicy.
type PolicyError struct {
	File       string // "" for an expression that came from no file
	Line       int    // 1-based; 0 when unknown
	Column     int    // 1-based; 0 when unknown
	Policy     string // metadata.name
	Rule       string // rule or variable name
	Field      string // path of the YAML field, e.g. "spec.rules[0].expression"
	Msg        string
	Suggestion string // e.g. a field name that was probably meant
}

func (e *PolicyError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		b.WriteByte(':')
	}
	if e.Line > 0 {
		fmt.Fprintf(&b, "%d:", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, "%d:", e.Column)
		}
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	if e.Policy != "" {
		fmt.Fprintf(&b, "policy %s: ", e.Policy)
	}
	if e.Rule != "" {
		fmt.Fprintf(&b, "rule %s: ", e.Rule)
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	b.WriteString(e.Msg)
	if e.Suggestion != "" {
		fmt.Fprintf(&b, " (did you mean %q?)", e.Suggestion)
	}
	return b.String()
}

func (e *PolicyError) Unwrap() error { return ErrPolicy }

// maxFaults bounds a LoadError: a file of a thousand faults has one cause.
const maxFaults = 100

// LoadError holds every fault found while loading policies, in the order of
// files and lines. errors.As finds the single *PolicyErrors.
type LoadError struct {
	Faults []*PolicyError
	More   int // faults beyond those listed
}

func (e *LoadError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "governance: %d fault(s) in policies; nothing was loaded", len(e.Faults)+e.More)
	for _, f := range e.Faults {
		b.WriteString("\n  ")
		b.WriteString(f.Error())
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n  and %d more", e.More)
	}
	return b.String()
}

func (e *LoadError) Unwrap() []error {
	out := make([]error, len(e.Faults))
	for i, f := range e.Faults {
		out[i] = f
	}
	return out
}

// EvalError says why an expression gave no result for an event. It wraps
// ErrMissingField, ErrData, ErrFact, ErrLimit or ErrEval.
type EvalError struct {
	Expression string // shortened
	Msg        string
	Kind       error
}

func (e *EvalError) Error() string {
	return fmt.Sprintf("governance: %v: %s in %q", e.Kind, e.Msg, e.Expression)
}

func (e *EvalError) Unwrap() error { return e.Kind }
