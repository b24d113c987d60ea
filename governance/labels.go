package governance

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// Codes of denials by labels, which no policy has to ask for.
const (
	CodeResidency        = "Residency"        // the place is none where the data may lie, or is not known
	CodeLicence          = "Licence"          // a licence of the data does not allow the use, or that is not known
	CodePersonalData     = "PersonalData"     // the place does not say that it takes personal data of the class
	CodeDeclassification = "Declassification" // labels are taken off, and no policy is about that
)

func labelCode(kind string) string {
	switch kind {
	case label.Residency:
		return CodeResidency
	case label.Licence:
		return CodeLicence
	default:
		return CodePersonalData
	}
}

// placed are the data of the events that bring data or a model somewhere, as far as
// labels matter.
type placed struct {
	Place *events.Place `json:"place"`
	Cold  *events.Place `json:"cold"`
}

// byLabels denies an event that tells of what the labels of the thing forbid: the copy of
// a batch to another tier, of a model to the object store, or a model's service. It is
// asked on publish, before any policy, and reports whether it denied. On receive it has
// happened.
func byLabels(d *Decision, labels string, data []byte) bool {
	if d.Point == events.OnReceive || labels == "" {
		return false
	}
	purpose := label.Store
	switch d.Type {
	case events.TypePromotionRequested, events.TypeModelPromoted:
		purpose = label.Serve
	case events.TypeMigrationRequested, events.TypeTierMoveRequested, events.TypeModelRegistered:
	default:
		return false
	}
	set, err := label.ParseText(labels)
	if err != nil {
		refuse(d, events.Deny, CodeInvalid, shorten(events.ExtLabels+": "+err.Error(), maxReasonBytes))
		return true
	}
	var to placed
	if err := json.Unmarshal(data, &to); err != nil {
		refuse(d, events.Deny, CodeInvalid, "the data cannot be read, so that the place is not known")
		return true
	}
	place, what := to.Place, "the model's service"
	switch d.Type {
	case events.TypeMigrationRequested:
		what = "the migration"
	case events.TypeTierMoveRequested:
		what = "the move"
	case events.TypeModelRegistered:
		if to.Cold == nil {
			return false
		}
		place, what = to.Cold, "the copy of the model in the cold tier"
	}
	if place == nil {
		place = &events.Place{}
	}
	found := set.Violations(*place, purpose)
	if len(found) == 0 {
		return false
	}
	reasons := make([]string, len(found))
	for i, v := range found {
		reasons[i] = v.Reason
	}
	refuse(d, events.Deny, labelCode(found[0].Kind), shorten("the labels forbid "+what+": "+strings.Join(reasons, "; "), maxReasonBytes))
	return true
}

// permitsDeclassification reports whether the policy is about taking labels off, so that
// one whose rules hold lets it pass: it names the type itself, it is enforced, and what
// it cannot evaluate it denies.
func (p *policy) permitsDeclassification() bool {
	return p.mode == Enforce && p.failure != failIgnore && slices.Contains(p.spec.Match.Types, events.TypeLabelDeclassified)
}

// sayDeclassified gives an allowed declassification its reason.
func sayDeclassified(d *Decision, data []byte) {
	if d.Type == events.TypeLabelDeclassified && d.Action == events.Allow && d.Reason == "" {
		d.Reason = declassified(data)
	}
}

// declassified is the reason of an allowed declassification: what was taken off, and why.
func declassified(data []byte) string {
	var of events.LabelDeclassified
	if err := json.Unmarshal(data, &of); err != nil {
		return "labels taken off"
	}
	what := of.Dataset + of.Model
	if of.Version != "" {
		what += fmt.Sprintf(" %.12s", of.Version)
	}
	return shorten(fmt.Sprintf("%s taken off %s: %s", strings.Join(of.Removed, ", "), what, of.Reason), maxReasonBytes)
}
