package governance

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/stokehold/stokehold/events"
)

// finding is a rule that does not hold.
type finding struct {
	p      *policy
	r      *rule
	effect events.Action // that the rule asks for, whatever the mode makes of it
	code   string
	reason string
	// tainted: the reason can show event data, and must not once some of them are
	// to be taken out.
	tainted bool
}

// secretReason stands for a reason that could show what is to be redacted.
const secretReason = "(what it says is withheld: event data are redacted)"

// found takes in a finding: of several the one of the highest precedence decides,
// of equals the first, and the others are notes.
func (s *evalState) found(d *Decision, f *finding) {
	effect := f.effect
	switch {
	case f.p.mode == Audit:
		s.note(d, f)
		return
	case f.p.mode == WarnOnly:
		effect = events.Warn
	case effect == events.Quarantine && s.isReleased(d):
		s.note(d, f)
		return
	case effect == events.Redact || effect == events.Route:
		if !s.effects.add(f.r) {
			s.note(d, &finding{p: f.p, r: f.r, effect: effect, reason: "another rule has sent the event elsewhere"})
		}
	case effect == events.RequireApproval:
		// Whether it holds is asked only if nothing else refuses the event.
		s.waiting = append(s.waiting, *f)
		return
	}
	s.decide(d, f, effect)
}

// decide makes a finding the decision, or a note of it.
func (s *evalState) decide(d *Decision, f *finding, effect events.Action) {
	if precedence(effect) <= precedence(d.Action) {
		s.note(d, f)
		return
	}
	if s.decider.p != nil {
		s.note(d, &s.decider)
	}
	s.decider = *f
	d.Action, d.Policy, d.Rule, d.Code, d.Reason = effect, f.p.name, f.r.name, f.code, shorten(f.reason, maxReasonBytes)
}

// isReleased reports whether a person has let the event go under this very set.
func (s *evalState) isReleased(d *Decision) bool {
	return s.letGo != nil || d.Point == events.OnReceive && s.current && s.event.ext.released != ""
}

func (s *evalState) note(d *Decision, f *finding) {
	if len(d.Notes) >= MaxNotes {
		return
	}
	d.Notes = append(d.Notes, Note{Policy: f.p.name, Rule: f.r.name, Reason: shorten(f.reason, maxReasonBytes), Mode: f.p.mode, Action: f.effect})
	s.taintedNotes = append(s.taintedNotes, f.tainted)
}

// outcome is what a judgement does to an event.
type outcome struct {
	changed bool
	data    []byte     // in place of the event's; nil: the same
	ext     attributes // with what the Judge sets
	need    *events.ApprovalNeed
}

// settle asks for approvals, if all else permits the event, applies to out, which has
// the event's attributes, what rules make of it, and keeps what is redacted out of the decision.
func (s *evalState) settle(set *PolicySet, d *Decision, j *scratch, out *outcome) {
	s.approve(d, j, out)
	// What is held is stored, and so without what must not be stored.
	if stored := d.Action.Permits() || d.Action == events.Quarantine && d.Point != events.OnReceive; stored && !s.effects.empty() {
		s.apply(set, d, out)
	}
	if s.letGo != nil && d.Action.Permits() {
		out.ext.released, out.changed = shorten(s.letGo.By, maxReasonBytes), true
	}
	if s.secret {
		if s.decider.tainted {
			d.Reason = s.decider.public()
			if out.need != nil {
				out.need.Reason = d.Reason
			}
		}
		for i := range d.Notes {
			if s.taintedNotes[i] {
				d.Notes[i].Reason = secretReason
			}
		}
	}
	if s.letGo != nil {
		why := shorten(fmt.Sprintf("released by %s: %s", s.letGo.By, s.letGo.Reason), maxReasonBytes)
		if d.Reason == "" {
			d.Reason = why
		}
		d.Notes = slices.Insert(d.Notes[:min(len(d.Notes), MaxNotes-1)], 0, Note{Reason: why, Mode: Enforce, Action: d.Action})
	}
}

// public is a reason without event data.
func (f *finding) public() string {
	switch {
	case f.code == CodeEvaluation:
		return "an expression failed " + secretReason
	case f.r.message != "":
		return shorten(f.r.message, maxReasonBytes)
	default:
		return secretReason
	}
}

// approve asks for the approvals that rules wait for. Those granted count as held
// rules; of the others the first decides.
func (s *evalState) approve(d *Decision, j *scratch, out *outcome) {
	for i := range s.waiting {
		f := &s.waiting[i]
		if precedence(d.Action) > precedence(events.RequireApproval) {
			s.note(d, f)
			continue
		}
		token := f.r.id + "="
		if d.Point == events.OnReceive && s.current && strings.Contains(" "+s.event.ext.approval, " "+token) {
			continue // its stamp proves that it was granted when the event was published
		}
		need := s.need(f, j)
		refused, why := s.ask(need)
		switch {
		case why == "":
			if d.Approval == "" {
				d.Approval = need.ID
			}
			out.ext.approval = strings.TrimSpace(out.ext.approval + " " + token + need.ID)
			out.changed = true
			continue
		case refused:
			f.code, f.effect = CodeRejected, events.Deny
			f.reason = shorten(f.reason, maxReasonBytes/2) + " (" + shorten(why, maxReasonBytes/2) + ")"
			s.decide(d, f, events.Deny)
			continue
		}
		f.reason = shorten(f.reason, maxReasonBytes/2) + " (" + why + ")"
		s.decide(d, f, events.RequireApproval)
		if out.need == nil && d.Action == events.RequireApproval {
			out.need, d.Approval = need, need.ID
			need.Reason = d.Reason
		}
	}
	if d.Action != events.RequireApproval {
		out.need = nil
	}
}

// need describes the approval that a finding waits for.
func (s *evalState) need(f *finding, j *scratch) *events.ApprovalNeed {
	c, ext := *s.event.ctx, s.event.ext
	c.Time = nil
	ext.cause, ext.route, ext.columns, ext.approval, ext.released = "", "", "", "", ""
	j.eventDigest(&j.sum, &c, s.event.source, &ext, s.raw)
	a := f.r.spec.Approval
	return &events.ApprovalNeed{
		ID: approvalID(&f.p.digest, f.r.name, &j.sum), Policy: f.r.id, Reason: f.reason,
		Roles: slices.Clone(a.Roles), Quorum: a.Quorum, Expires: a.Expires, Requester: ext.actor,
		EventID: c.ID, Type: c.Type, Source: s.event.source, Subject: deref(c.Subject), Pipeline: ext.pipeline, Run: ext.run,
	}
}

// ask looks for a grant. why is empty if there is one that counts; refused means
// that somebody said no.
func (s *evalState) ask(need *events.ApprovalNeed) (refused bool, why string) {
	if s.engine.approvals == nil {
		return false, "nobody can approve here: no source of approvals is configured"
	}
	ctx, err := s.outside()
	if err != nil {
		return false, "the approvals could not be asked for: " + err.Error()
	}
	g, err := s.engine.approvals.Approved(ctx, need.ID)
	switch {
	case errors.Is(err, ErrRejected):
		return true, err.Error() // who, and why
	case errors.Is(err, ErrNotApproved):
		return false, "not approved yet"
	case err != nil:
		return false, "the approvals could not be asked for: " + err.Error()
	}
	return false, g.valid(need, s.now.Time)
}

// apply makes of the event what the rules ask for. An event that would not be
// valid any more is denied.
func (s *evalState) apply(set *PolicySet, d *Decision, out *outcome) {
	d.Effect = shorten(s.effects.summary(), maxReasonBytes)
	if len(s.effects.paths) > 0 && len(s.raw) > 0 {
		data, changed, err := s.redacted(set)
		if err != nil {
			d.Policy, d.Rule = "", ""
			refuse(d, events.Deny, CodeRedaction, shorten(err.Error(), maxReasonBytes))
			*out = outcome{ext: s.event.ext}
			return
		}
		if changed {
			out.data, out.changed = data, true
		}
	}
	if !s.effects.columns.IsZero() {
		out.ext.columns, out.changed = s.effects.columns.String(), true
	}
	if !s.effects.route.IsZero() {
		out.ext.route, out.changed = s.effects.route.String(), true
	}
	if len(out.ext.columns) > maxAttributeBytes {
		refuse(d, events.Deny, CodeRedaction, "the names of the columns to take out exceed 8 KiB")
		*out = outcome{ext: s.event.ext}
	}
}

// checker is a TypeSource that can hold data to their type, as *events.Registry.
type checker interface{ Check(ev *events.Event) error }

var errRedactedInvalid = errors.New("without the data that are to be redacted the event is not valid for its type")

// redacted returns the event's data without what is taken out, if they are still
// valid. Errors show no data.
func (s *evalState) redacted(set *PolicySet) (data []byte, changed bool, err error) {
	if !s.json {
		return nil, false, errors.New("data that are not JSON cannot be redacted")
	}
	data, changed, err = redactJSON(s.raw, s.effects.paths)
	if err != nil {
		return nil, false, errors.New("the data to be redacted cannot be read")
	}
	if !changed {
		return data, false, nil
	}
	if s.strict != nil {
		if _, err := decodeData(data, s.strict); err != nil {
			return nil, false, errRedactedInvalid
		}
	}
	if types, ok := set.types.(checker); ok {
		ev := *s.ev
		ev.DataEncoded = data
		if err := types.Check(&ev); err != nil && !errors.Is(err, events.ErrUnknownType) {
			return nil, false, errRedactedInvalid
		}
	}
	return data, true, nil
}
