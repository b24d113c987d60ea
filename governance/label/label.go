// Package label is the algebra of the labels that say what data are, and what they
// make: pii, residency and licence, and names of one's own.
//
// A set of labels is a point of a join-semilattice: Join of two sets is the least
// set that is at least as restrictive as either. What is made of several things has
// the join of their labels, and nothing but a declassification makes a set weaker.
//
//	pii, pii:CLASS     personal data, of a class; joined by union
//	residency:REGION   the data may lie in this region; of several in any of them.
//	                   Joined by intersection: what is made of data that may lie in eu
//	                   or us and of data that may lie in eu may lie in eu.
//	                   residency:none: nowhere, since the inputs have no region in common
//	licence:NAME       terms that come with the data; joined by union: all of them bind
//	NAME, NAME:VALUE   anything else; joined by union
//
// A set without residency labels restricts no region; one without licences brings no
// terms. Absence says that nothing was declared, never that something was checked.
// Regions are compared as they are written: eu-west-2 is no part of eu.
package label

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stokehold/stokehold/events"
)

// The names that have a meaning of their own.
const (
	PII       = "pii"
	Residency = "residency"
	Licence   = "licence"
)

// Nowhere is the residency label of data that may lie in no region.
const Nowhere = Residency + ":none"

// MaxLabels bounds a set. Each label is at most 64 bytes (events.CheckLabel), so that
// a set fits into the attribute of an event.
const MaxLabels = 64

// Sentinels for the decisions a caller makes.
var (
	// ErrInvalid means a label that cannot be used.
	ErrInvalid = errors.New("invalid label")
	// ErrTooMany means a set, or a join, of more than MaxLabels.
	ErrTooMany = errors.New("too many labels")
)

// Error says which label cannot be used and why. Err is a sentinel of this package.
type Error struct {
	Label string // "" where no single one is to blame
	Why   string
	Hint  string // what to do
	Err   error
}

func (e *Error) Error() string {
	s := e.Err.Error()
	if e.Label != "" {
		s += fmt.Sprintf(" %.80q", e.Label)
	}
	return s + ": " + e.Why + " (" + e.Hint + ")"
}

func (e *Error) Unwrap() error { return e.Err }

// Set is a set of labels in canonical form: sorted, each once, and of residency
// either regions or Nowhere. Make one with Parse. nil is the set without labels, the
// least restrictive. A Set is not changed once made.
type Set []string

// Parse makes a set of labels in any order. The error is an *Error.
func Parse(labels []string) (Set, error) {
	out := make(Set, 0, min(len(labels), MaxLabels+1))
	for _, l := range labels {
		if err := check(l); err != nil {
			return nil, err
		}
		if !slices.Contains(out, l) {
			out = append(out, l)
		}
		if len(out) > MaxLabels {
			return nil, tooMany(len(labels))
		}
	}
	return canonical(out), nil
}

// ParseText reads what Set.String writes, as in the attribute stklabels.
func ParseText(text string) (Set, error) {
	if text == "" {
		return nil, nil
	}
	return Parse(strings.Split(text, ","))
}

func check(l string) error {
	if err := events.CheckLabel(l); err != nil {
		return &Error{Label: l, Why: err.Error(), Hint: "write NAME or NAME:VALUE in lower case", Err: ErrInvalid}
	}
	switch l {
	case Residency:
		return &Error{Label: l, Why: "it names no region", Hint: "write residency:REGION, or residency:none", Err: ErrInvalid}
	case Licence:
		return &Error{Label: l, Why: "it names no licence", Hint: "write licence:NAME, or licence:unknown", Err: ErrInvalid}
	}
	return nil
}

func tooMany(n int) error {
	return &Error{Why: fmt.Sprintf("%d, at most %d", n, MaxLabels), Hint: "use fewer, coarser labels", Err: ErrTooMany}
}

// canonical sorts s in place and lets Nowhere stand alone among the regions.
func canonical(s Set) Set {
	if slices.Contains(s, Nowhere) {
		s = slices.DeleteFunc(s, func(l string) bool { return isRegion(l) && l != Nowhere })
	}
	if len(s) == 0 {
		return nil
	}
	slices.Sort(s)
	return s
}

func isRegion(l string) bool { return strings.HasPrefix(l, Residency+":") }

// Join returns the least set that is at least as restrictive as each of sets, or an
// *Error for ErrTooMany: what would have it cannot be made.
func Join(sets ...Set) (Set, error) {
	var out Set
	for _, s := range sets {
		switch {
		case len(s) == 0:
		case len(out) == 0:
			out = slices.Clone(s)
		default:
			out = join(out, s)
		}
		if len(out) > MaxLabels {
			return nil, tooMany(len(out))
		}
	}
	return canonical(out), nil
}

func join(a, b Set) Set {
	out := make(Set, 0, len(a)+len(b))
	restricted := a.restricted() && b.restricted()
	for _, l := range a {
		if !restricted || !isRegion(l) || slices.Contains(b, l) {
			out = append(out, l)
		}
	}
	for _, l := range b {
		if !slices.Contains(out, l) && (!restricted || !isRegion(l)) {
			out = append(out, l)
		}
	}
	if restricted && !out.restricted() {
		out = append(out, Nowhere)
	}
	return out
}

// restricted reports whether the set says where the data may lie.
func (s Set) restricted() bool { return slices.ContainsFunc(s, isRegion) }

// Covers reports whether s is at least as restrictive as other: whatever other
// forbids, s forbids too.
func (s Set) Covers(other Set) bool {
	for _, l := range other {
		if !isRegion(l) && !slices.Contains(s, l) {
			return false
		}
	}
	if !other.restricted() {
		return true
	}
	if !s.restricted() {
		return false
	}
	return !slices.ContainsFunc(s, func(l string) bool { return isRegion(l) && l != Nowhere && !slices.Contains(other, l) })
}

// Values returns what follows NAME: in the labels of that name, sorted.
func (s Set) Values(name string) []string {
	var out []string
	for _, l := range s {
		if v, ok := strings.CutPrefix(l, name+":"); ok {
			out = append(out, v)
		}
	}
	return out
}

// Has reports whether the set has a label of that name, with a value or without.
func (s Set) Has(name string) bool {
	return slices.ContainsFunc(s, func(l string) bool { return nameOf(l) == name })
}

func nameOf(l string) string {
	name, _, _ := strings.Cut(l, ":")
	return name
}

// String is the labels joined by commas.
func (s Set) String() string { return strings.Join(s, ",") }
