package label

import (
	"fmt"
	"slices"
	"strings"
)

// maxReasonBytes bounds the reason of a declassification.
const maxReasonBytes = 512

// Declassification says which labels are taken off, and why. Each of Labels is a name,
// such as pii or residency, for all labels of that name, or a label with its value,
// such as pii:contact. A residency is taken off as a whole: without one of its regions
// the rest would be stricter, not weaker.
type Declassification struct {
	Labels []string `json:"labels"`
	Reason string   `json:"reason"`
}

// Check reports what is wrong with d. The error wraps ErrInvalid or ErrTooMany.
func (d Declassification) Check() error {
	if len(d.Labels) == 0 || len(d.Labels) > MaxLabels {
		return &Error{Why: fmt.Sprintf("a declassification names %d labels", len(d.Labels)), Hint: fmt.Sprintf("name 1 to %d", MaxLabels), Err: ErrTooMany}
	}
	for _, l := range d.Labels {
		if isRegion(l) {
			return &Error{Label: l, Why: "a residency is taken off as a whole", Hint: "write residency", Err: ErrInvalid}
		}
		if l == Residency || l == Licence {
			continue
		}
		if err := check(l); err != nil {
			return err
		}
	}
	if strings.TrimSpace(d.Reason) == "" || len(d.Reason) > maxReasonBytes {
		return &Error{Why: fmt.Sprintf("a declassification needs a reason of 1 to %d bytes", maxReasonBytes), Hint: "say why the labels no longer fit", Err: ErrInvalid}
	}
	return nil
}

// Of returns s without what d takes off, and what that is.
func (d Declassification) Of(s Set) (left, removed Set) {
	for _, l := range s {
		if slices.Contains(d.Labels, l) || slices.Contains(d.Labels, nameOf(l)) {
			removed = append(removed, l)
		} else {
			left = append(left, l)
		}
	}
	return left, removed
}
