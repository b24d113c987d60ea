package events

import (
	"context"
	"time"
)

// Point is where on its way an event is judged.
type Point string

// The points at which an event is judged.
const (
	OnPublish Point = "publish" // before the event is sent to the stream
	OnReceive Point = "receive" // before a handler sees it
	// OnRelease is OnPublish for an event that a person lets go from the held
	// stream: what held it there does not hold it again.
	OnRelease Point = "release"
)

// Action is what governance decided.
type Action string

// The actions that governance knows; Permits says which let an event go on.
// Where rules ask for several, Deny goes before Quarantine, that before
// RequireApproval, Redact, Route, Warn and Allow.
const (
	Allow Action = "allow"
	Warn  Action = "warn" // allowed, with a warning on record
	Deny  Action = "deny"
	// Quarantine puts the event in the held stream, from which Bus.Release lets it go.
	Quarantine Action = "quarantine"
	// Redact lets the event go without some of its data: the Judge has taken them
	// out, or its ExtColumns attribute says which columns of its batch to take out.
	Redact Action = "redact"
	// Route lets the event go with an ExtRoute attribute, which RouteOf reads.
	Route Action = "route"
	// RequireApproval lets the event pass once people have approved it; until then
	// publishing it gives an *ApprovalRequiredError.
	RequireApproval Action = "require_approval"
)

// Permits reports whether an event with this action may go on its way.
// Anything unknown does not: governance fails closed.
func (a Action) Permits() bool { return a == Allow || a == Warn || a == Redact || a == Route }

// Verdict is the decision on one event.
type Verdict struct {
	Action     Action
	DecisionID string // id in the decision log
	Policy     string // policy and rule that decided, "policy/rule"; "" when none matched
	Reason     string // one line for a person
	// Approval is what a RequireApproval waits for; nil with any other action.
	Approval *ApprovalNeed
}

// ApprovalNeed is an approval that an event waits for.
type ApprovalNeed struct {
	// ID is 40 hex digits that follow from the policy's content, the rule and all of
	// the event that policies see but its time and cause: publishing the same event
	// again asks for the same approval, and any other event for another.
	ID        string
	Policy    string        // "policy/rule" that asks
	Reason    string        // why, one line for a person
	Roles     []string      // an approver must have one of them; none: any approver
	Quorum    int           // people who must approve; at least 1
	Expires   time.Duration // how long the request waits, and how long an approval then counts
	Requester string        // the actor of the event (ExtActor), who may not approve; "" if it names none
	EventID   string
	Type      string
	Source    string
	Subject   string
	Pipeline  string
	Run       string
}

// Judge decides on events. The bus calls it on publish and again before a
// handler runs; governance implements it.
//
// Judge returns one verdict per event, in order, and only after the decisions
// are durable. On publish it brings each permitted event in place into the form
// in which it may go on (redacted data, ExtRoute, ExtColumns) and stamps it with
// extension attributes (policy digest, decision id, MAC) that the receiving side
// verifies; on receive it refuses events whose stamp is missing, forged or stale.
// Bytes of an event's data are never written to, only replaced as a whole. An error means that nothing was decided: the bus then lets no event of
// the call pass. Safe for concurrent use. Events are the caller's again once
// Judge returns.
type Judge interface {
	Judge(ctx context.Context, at Point, events []*Event) ([]Verdict, error)
}

// Release says who lets a held event go, and why.
type Release struct {
	By     string // required
	Reason string // required; goes to the decision log
}

// Releaser is a Judge that can let a held event go. JudgeRelease judges the event
// as on publish, at the point OnRelease: rules that only hold an event do not hold
// it, all others decide as ever. The decision names who released it and why.
type Releaser interface {
	Judge
	JudgeRelease(ctx context.Context, ev *Event, r Release) (Verdict, error)
}

// AllowAll returns a Judge that lets every event pass, decides nothing, logs
// nothing and stamps nothing.
//
// It switches governance OFF. It is there for tests and examples; a process that
// acts on events must use a real Judge.
func AllowAll() Judge { return allowAll{} }

type allowAll struct{}

func (allowAll) Judge(_ context.Context, _ Point, events []*Event) ([]Verdict, error) {
	vs := make([]Verdict, len(events))
	for i := range vs {
		vs[i].Action = Allow
	}
	return vs, nil
}
