package audit

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// What OpenLineage asks of every event and facet: who made it, and the schema that
// it follows.
const (
	olProducer    = "https://github.com/stokehold/stokehold/governance/audit"
	olSchema      = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
	olFacetSchema = "https://stokehold.dev/schemas/openlineage/decision-run-facet-1.json#/$defs/DecisionRunFacet"
	olNamespace   = "stokehold"
)

// olRunEvent is OpenLineage's RunEvent, version 2-0-2. A decision does not change
// the state of a run, which OpenLineage calls OTHER.
type olRunEvent struct {
	EventType string     `json:"eventType"`
	EventTime time.Time  `json:"eventTime"`
	Run       olRun      `json:"run"`
	Job       olJob      `json:"job"`
	Inputs    []struct{} `json:"inputs"`
	Outputs   []struct{} `json:"outputs"`
	Producer  string     `json:"producer"`
	SchemaURL string     `json:"schemaURL"`
}

type olRun struct {
	RunID  string      `json:"runId"`
	Facets olRunFacets `json:"facets"`
}

type olRunFacets struct {
	Decision olDecision `json:"stokehold_decision"`
}

type olJob struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Facets    struct{} `json:"facets"`
}

// olDecision is our facet: the entry, where it is, and what a facet must have.
type olDecision struct {
	Producer  string `json:"_producer"`
	SchemaURL string `json:"_schemaURL"`
	proof.Entry
	Stream  string    `json:"stream"`
	Message uint64    `json:"message"`
	Index   int       `json:"index"`
	Stored  time.Time `json:"stored"`
}

// runEvent tells of a decision as of its pipeline's run; of an event that belongs to
// none, as of a job named by the event's type.
func runEvent(r *Record, stream string) olRunEvent {
	job := r.Pipeline
	if job == "" {
		job = "event/" + r.Type
	}
	run := r.Run
	if run == "" {
		run = "event/" + r.Source + "/" + r.EventID
	}
	return olRunEvent{
		EventType: "OTHER", EventTime: r.Time.UTC(),
		Run: olRun{RunID: runID(r.Pipeline, run), Facets: olRunFacets{olDecision{
			Producer: olProducer, SchemaURL: olFacetSchema, Entry: entryOf(&r.Decision),
			Stream: stream, Message: r.Sequence, Index: r.Index, Stored: r.Stored,
		}}},
		Job:    olJob{Namespace: olNamespace, Name: job},
		Inputs: []struct{}{}, Outputs: []struct{}{},
		Producer: olProducer, SchemaURL: olSchema,
	}
}

// runID makes the UUID that OpenLineage wants of a run's name: version 8 (RFC 9562)
// over SHA-256, the same for all decisions of a run.
func runID(pipeline, run string) string {
	sum := sha256.Sum256([]byte("stokehold-run\x00" + pipeline + "\x00" + run))
	u := sum[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
