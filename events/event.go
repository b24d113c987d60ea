package events

import (
	"encoding/json"
	"errors"
	"fmt"
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
)

// New builds an event with data marshalled as JSON. id must be the same
// whenever the same fact is published again: it is the message id that
// JetStream and every consumer dedupe by.
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
	// ErrClosed: the bus is closed or draining.
	ErrClosed = errors.New("bus closed")
)

// Error says which event failed, why, and what to do about it.
type Error struct {
	Op   string // "publish", "receive", "subscribe"
	ID   string
	Type string
	Hint string // what to do
	Err  error  // wraps one of the sentinels
}

func (e *Error) Error() string {
	s := fmt.Sprintf("events: %s %s %q: %v", e.Op, e.Type, e.ID, e.Err)
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }
