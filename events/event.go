package events

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
)

// Event is a CloudEvents 1.0 event. The alias keeps the SDK's accessors
// (ID, Type, Source, Subject, Time, Data, Extensions) and its JSON form.
type Event = event.Event

// MaxDataBytes is the largest payload an event may carry. Larger payloads
// travel by reference (the CloudEvents "dataref" extension).
const MaxDataBytes = 64 << 10

// Extension attributes that Stokehold sets. CloudEvents allows lower-case
// letters and digits only.
const (
	ExtRun      = "stkrun"      // run that caused the event
	ExtPipeline = "stkpipeline" // pipeline of that run
	ExtStage    = "stkstage"    // stage that published it
	ExtCause    = "stkcause"    // id of the event that led to this one
	ExtDataRef  = "dataref"     // claim check: where a payload over the limit is
	ExtActor    = "stkactor"    // person or service on whose behalf the event is published
	ExtLabels   = "stklabels"   // labels of what the event is about, joined by commas: pii,residency:eu
)

// Extension attributes that the Judge alone sets. What a publisher puts there is
// taken off before the event is judged.
const (
	ExtRoute    = "stkroute"    // where the event is to be handled; read by RouteOf
	ExtColumns  = "stkcolumns"  // columns of the event's batch to drop or mask; read by ColumnsOf
	ExtApproval = "stkapproval" // approvals the event passed by: "policy/rule=id", joined by spaces
	ExtReleased = "stkreleased" // who let the event go from the held stream
)

// New builds an event with data marshalled as JSON. id must be the same
// whenever the same fact is published again: CloudEvents identifies an event by
// source and id together, and that pair is the message id that JetStream and
// every consumer dedupe by. What is wrong with the arguments (an empty id, a
// source that is no URI reference) is reported when the event is published.
func New(typ, source, subject, id string, at time.Time, data any) (Event, error) {
	e := event.New(event.CloudEventsVersionV1)
	e.SetID(id)
	e.SetType(typ)
	e.SetSource(source)
	if subject != "" {
		e.SetSubject(subject)
	}
	e.SetTime(at)
	if data != nil {
		raw, err := json.Marshal(data)
		if err != nil {
			return Event{}, fmt.Errorf("events: encode data of %s %s: %w", typ, id, err)
		}
		if err := e.SetData(event.ApplicationJSON, json.RawMessage(raw)); err != nil {
			return Event{}, fmt.Errorf("events: set data of %s %s: %w", typ, id, err)
		}
	}
	return e, nil
}

// Sentinels for the decisions a caller makes. All are wrapped in *Error.
var (
	// ErrInvalid: the event breaks CloudEvents 1.0 or the type's schema.
	ErrInvalid = errors.New("invalid event")
	// ErrUnknownType: no such type in the Registry given to the bus.
	ErrUnknownType = errors.New("unknown event type")
	// ErrTooLarge: the data exceeds MaxDataBytes.
	ErrTooLarge = errors.New("event data too large")
	// ErrDenied: governance refused the event. Never retry unchanged.
	ErrDenied = errors.New("event denied")
	// ErrQuarantined: governance holds the event, which matches ErrDenied too: it is
	// in the held stream until Bus.Release lets it go, and need not be sent again.
	ErrQuarantined = errors.New("event quarantined")
	// ErrApprovalRequired: people must approve the event first. It is not stored
	// anywhere; publish it again, unchanged, when they have. Does not match ErrDenied.
	ErrApprovalRequired = errors.New("event needs approval")
	// ErrNotHeld: there is no held event of that id (any more).
	ErrNotHeld = errors.New("no such held event")
	// ErrClosed: the bus is closed or draining.
	ErrClosed = errors.New("bus closed")
	// ErrUnavailable: nothing was decided or nothing was acknowledged. The event
	// may nevertheless be in the stream; publishing it again is safe.
	ErrUnavailable = errors.New("bus unavailable")
	// ErrConfig: the configuration of the bus or of a subscription is faulty.
	ErrConfig = errors.New("invalid configuration")
)

// DeniedError carries the verdict behind ErrDenied. Find it with errors.As.
type DeniedError struct{ Verdict Verdict }

func (e *DeniedError) Error() string {
	v := e.Verdict
	s := ErrDenied.Error() + ": " + string(v.Action)
	if v.Policy != "" {
		s += " by " + v.Policy
	}
	if v.Reason != "" {
		s += ": " + v.Reason
	}
	if v.DecisionID != "" {
		s += " [decision " + v.DecisionID + "]"
	}
	return s
}

func (e *DeniedError) Unwrap() error { return ErrDenied }

// Is makes a quarantine match ErrQuarantined.
func (e *DeniedError) Is(target error) bool {
	return target == ErrQuarantined && e.Verdict.Action == Quarantine
}

// ApprovalRequiredError says what approval an event waits for. It wraps
// ErrApprovalRequired. Find it with errors.As, park, and publish the event again
// when the approval is given.
type ApprovalRequiredError struct {
	Need    ApprovalNeed
	Verdict Verdict
}

func (e *ApprovalRequiredError) Error() string {
	s := fmt.Sprintf("%v by %d", ErrApprovalRequired, max(e.Need.Quorum, 1))
	if len(e.Need.Roles) > 0 {
		s += " of " + strings.Join(e.Need.Roles, ", ")
	}
	if e.Need.Policy != "" {
		s += ", says " + e.Need.Policy
	}
	if e.Need.Reason != "" {
		s += ": " + e.Need.Reason
	}
	return s + " [approval " + e.Need.ID + "]"
}

func (e *ApprovalRequiredError) Unwrap() error { return ErrApprovalRequired }

// refusal is the error for an event that its verdict does not permit.
func refusal(v Verdict) error {
	if v.Action == RequireApproval && v.Approval != nil {
		return &ApprovalRequiredError{Need: *v.Approval, Verdict: v}
	}
	return &DeniedError{Verdict: v}
}

// Error says which event failed, why, and what to do about it.
type Error struct {
	Op   string // "open", "approve", "publish", "receive", "release", "subscribe", "probe"
	ID   string // of the event, if one is meant
	Type string // of the event, if one is meant
	Hint string // what to do
	Err  error  // wraps one of the sentinels
}

func (e *Error) Error() string {
	s := "events: " + e.Op
	if e.Type != "" {
		s += " " + e.Type
	}
	if e.ID != "" {
		s += fmt.Sprintf(" %.100q", e.ID)
	}
	s += ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
