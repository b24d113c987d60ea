package events

// Standard event types. Subject on the bus:
// PREFIX.event.TYPE.SUBJECT, e.g. stokehold.event.batch.published.flights_schedule
const (
	TypeRunStarted         = "run.started"
	TypeRunCompleted       = "run.completed"
	TypeRunFailed          = "run.failed"
	TypeStageStarted       = "stage.started"
	TypeStageCompleted     = "stage.completed"
	TypeBatchPublished     = "batch.published"
	TypeDatasetSealed      = "dataset.sealed"
	TypeDriftDetected      = "drift.detected"
	TypeModelRegistered    = "model.registered"
	TypePromotionRequested = "model.promotion.requested"
	TypeModelPromoted      = "model.promoted"
	TypeModelRefused       = "model.refused"
	TypeTierMoved          = "tier.moved"
	TypeTriggerFired       = "trigger.fired"
	TypeTriggerSuppressed  = "trigger.suppressed"
)

// Type describes one event type.
type Type struct {
	Name        string // lower-case words joined by dots
	Description string
	Data        any // zero value of the Go type that the data must decode into, strictly; nil: any JSON object
}

// Registry is the set of event types a bus lets through. A value, built once;
// read-only afterwards.
type Registry struct{}

// NewRegistry returns a new registry holding the types above plus extra.
// Faults in extra (duplicate, malformed name) are all in one error.
func NewRegistry(extra ...Type) (*Registry, error) { panic("contract") }

// Lookup returns the type of that name.
func (r *Registry) Lookup(name string) (Type, bool) { panic("contract") }

// All returns the types sorted by name.
func (r *Registry) All() []Type { panic("contract") }
