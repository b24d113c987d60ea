package events

import "context"

// Point is where on its way an event is judged.
type Point string

// The two points at which an event is judged.
const (
	OnPublish Point = "publish" // before the event is sent to the stream
	OnReceive Point = "receive" // before a handler sees it
)

// Action is what governance decided.
type Action string

// The actions that governance knows; Permits says which let an event go on.
const (
	Allow           Action = "allow"
	Warn            Action = "warn" // allowed, with a warning on record
	Deny            Action = "deny"
	Quarantine      Action = "quarantine"
	Redact          Action = "redact"
	Route           Action = "route"
	RequireApproval Action = "require_approval"
)

// Permits reports whether an event with this action may go on its way.
// Anything unknown does not: governance fails closed.
func (a Action) Permits() bool { return a == Allow || a == Warn }

// Verdict is the decision on one event.
type Verdict struct {
	Action     Action
	DecisionID string // id in the decision log
	Policy     string // policy and rule that decided, "policy/rule"; "" when none matched
	Reason     string // one line for a person
}

// Judge decides on events. The bus calls it on publish and again before a
// handler runs; governance implements it.
//
// Judge returns one verdict per event, in order, and only after the decisions
// are durable. On publish it stamps each permitted event in place with
// extension attributes (policy digest, decision id, MAC) that the receiving
// side verifies; on receive it refuses events whose stamp is missing, forged or
// stale. An error means that nothing was decided: the bus then lets no event of
// the call pass. Safe for concurrent use. Events are the caller's again once
// Judge returns.
type Judge interface {
	Judge(ctx context.Context, at Point, events []*Event) ([]Verdict, error)
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
