package events

import "time"

// The data of the standard event types. All travel as JSON objects with the
// field names in the tags. Times are in the event's time attribute; durations
// are in seconds; sizes are in bytes.

// Place is where data, or a model, are to be brought. Labels are compared with it
// (package governance/label); what is not known of it counts against it.
type Place struct {
	// Region as residency labels name it, e.g. eu; "": not known.
	Region string `json:"region,omitempty"`
	// Use is what models in service there are for: commercial, noncommercial, research,
	// or a word of one's own; "": not known.
	Use string `json:"use,omitempty"`
	// PII are the classes of personal data that may be there: what follows pii: in
	// labels, or * for all.
	PII []string `json:"pii,omitempty"`
}

// IsZero reports whether nothing is known of the place.
func (p Place) IsZero() bool { return p.Region == "" && p.Use == "" && len(p.PII) == 0 }

// RunStarted is the data of TypeRunStarted.
type RunStarted struct {
	Pipeline string `json:"pipeline"`
	Run      string `json:"run"`
	Trigger  string `json:"trigger,omitempty"` // what started it; empty: a person
	Cause    string `json:"cause,omitempty"`   // id of the event that led to it
}

// RunCompleted is the data of TypeRunCompleted.
type RunCompleted struct {
	Pipeline string  `json:"pipeline"`
	Run      string  `json:"run"`
	Seconds  float64 `json:"seconds"`
}

// RunFailed is the data of TypeRunFailed.
type RunFailed struct {
	Pipeline string `json:"pipeline"`
	Run      string `json:"run"`
	Stage    string `json:"stage,omitempty"` // empty: failed outside any stage
	Reason   string `json:"reason"`
}

// StageStarted is the data of TypeStageStarted.
type StageStarted struct {
	Pipeline string `json:"pipeline"`
	Run      string `json:"run"`
	Stage    string `json:"stage"`
	Attempt  int    `json:"attempt"` // 1 on the first
}

// StageCompleted is the data of TypeStageCompleted.
type StageCompleted struct {
	Pipeline    string             `json:"pipeline"`
	Run         string             `json:"run"`
	Stage       string             `json:"stage"`
	Attempt     int                `json:"attempt"`
	Batches     int64              `json:"batches"` // published by the stage
	Rows        int64              `json:"rows"`
	Leased      int64              `json:"leased"`       // batches read in place
	BodyBytes   int64              `json:"body_bytes"`   // of all batches passed
	CopiedBytes int64              `json:"copied_bytes"` // of them copied between processes
	Seconds     float64            `json:"seconds"`
	Metrics     map[string]float64 `json:"metrics,omitempty"`
	Ahead       ReadAhead          `json:"ahead,omitzero"`
}

// ReadAhead is what reading ahead of a stage achieved.
type ReadAhead struct {
	Hits         int64   `json:"hits"`          // batches that were there when asked for
	Misses       int64   `json:"misses"`        // that were waited for
	Fresh        int64   `json:"fresh"`         // that were made while they were waited for
	BytesEarly   int64   `json:"bytes_early"`   // bodies of hits
	BytesLate    int64   `json:"bytes_late"`    // bodies of misses
	StallSeconds float64 `json:"stall_seconds"` // that the stage waited for batches that there were
}

// BatchPublished is the data of TypeBatchPublished.
type BatchPublished struct {
	Dataset     string `json:"dataset"`
	Sequence    int64  `json:"sequence"` // place in the dataset, from 0
	Rows        int64  `json:"rows"`
	BodyBytes   int64  `json:"body_bytes"`
	Fingerprint string `json:"fingerprint"` // of the schema
	SHA256      string `json:"sha256,omitempty"`
	Tier        string `json:"tier"`
	URI         string `json:"uri"`
}

// DatasetSealed is the data of TypeDatasetSealed.
type DatasetSealed struct {
	Dataset string `json:"dataset"`
	Batches int64  `json:"batches"`
	Rows    int64  `json:"rows"`
}

// DriftDetected is the data of TypeDriftDetected.
type DriftDetected struct {
	Pipeline  string             `json:"pipeline"`
	Model     string             `json:"model"`
	Version   string             `json:"version"`
	Detector  string             `json:"detector"`
	Statistic float64            `json:"statistic"`
	Threshold float64            `json:"threshold"`
	Window    string             `json:"window"` // what was compared, e.g. "week 7"
	Rows      int64              `json:"rows"`
	Metrics   map[string]float64 `json:"metrics,omitempty"`
	Params    map[string]any     `json:"params,omitempty"` // for the run that this event may start
}

// ModelRegistered is the data of TypeModelRegistered.
type ModelRegistered struct {
	Model   string             `json:"model"`
	Version string             `json:"version"`
	Run     string             `json:"run"`
	Metrics map[string]float64 `json:"metrics,omitempty"`
	Cold    *Place             `json:"cold,omitempty"` // where a copy of the artifact goes; absent: nowhere
}

// PromotionRequested is the data of TypePromotionRequested. Whether the request
// is allowed on publish is the promotion gate.
type PromotionRequested struct {
	Model      string           `json:"model"`
	Challenger string           `json:"challenger"`         // version that asks
	Champion   string           `json:"champion,omitempty"` // version in service; empty: none yet
	Run        string           `json:"run"`
	Cause      string           `json:"cause,omitempty"`
	Metrics    PromotionMetrics `json:"metrics"`
	Rows       int64            `json:"rows"`            // that both were measured on
	Place      *Place           `json:"place,omitempty"` // where it is to serve; absent: not known
}

// PromotionMetrics compares both versions on the same rows.
type PromotionMetrics struct {
	Challenger map[string]float64 `json:"challenger"`
	Champion   map[string]float64 `json:"champion,omitempty"`
}

// ModelPromoted is the data of TypeModelPromoted and TypeModelAliased.
type ModelPromoted struct {
	Model    string             `json:"model"`
	Version  string             `json:"version"`
	Previous string             `json:"previous,omitempty"` // version that the alias pointed to
	Alias    string             `json:"alias"`
	Run      string             `json:"run"`
	Cause    string             `json:"cause,omitempty"`
	Metrics  map[string]float64 `json:"metrics,omitempty"`
	Place    *Place             `json:"place,omitempty"` // of a champion: where it serves; absent: not known
}

// PolicyRefused is the data of TypePolicyRefused.
type PolicyRefused struct {
	Bundle   string `json:"bundle"`
	Revision int64  `json:"revision"`           // of the store; 0: the store has none any more
	Process  string `json:"process"`            // HOST/PID that refuses it
	InForce  string `json:"in_force,omitempty"` // version that stays; "": that of the files
	Reason   string `json:"reason"`
}

// ModelRefused is the data of TypeModelRefused.
type ModelRefused struct {
	Model    string `json:"model"`
	Version  string `json:"version"`
	Champion string `json:"champion,omitempty"`
	Run      string `json:"run"`
	Cause    string `json:"cause,omitempty"`
	Reason   string `json:"reason"`
	Policy   string `json:"policy,omitempty"` // "policy/rule" that refused
}

// TierMoved is the data of TypeTierMoved.
type TierMoved struct {
	Dataset  string `json:"dataset"`
	Sequence int64  `json:"sequence"`
	From     string `json:"from"`
	To       string `json:"to"`
	Bytes    int64  `json:"bytes"`
	SHA256   string `json:"sha256"`
	// Reason is that of the request: a person's, or TIERPOLICY/RULE.
	Reason string `json:"reason,omitempty"`
}

// TierMigrationRequested is the data of TypeMigrationRequested.
type TierMigrationRequested struct {
	Dataset string   `json:"dataset"`
	First   int64    `json:"first"`   // sequence of the first batch
	Batches int64    `json:"batches"` // how many from there on, at most
	From    string   `json:"from"`    // tier
	To      string   `json:"to"`      // tier
	Evict   bool     `json:"evict,omitempty"`
	Labels  []string `json:"labels,omitempty"` // of the dataset
	Reason  string   `json:"reason,omitempty"` // a person's, or TIERPOLICY/RULE
	Place   *Place   `json:"place,omitempty"`  // where To is; absent: not known
}

// TierMoveRequested is the data of TypeTierMoveRequested.
type TierMoveRequested struct {
	Dataset  string   `json:"dataset"`
	Sequence int64    `json:"sequence"`
	From     string   `json:"from"`
	To       string   `json:"to"`
	Bytes    int64    `json:"bytes"` // of Arrow data
	Evict    bool     `json:"evict,omitempty"`
	Labels   []string `json:"labels,omitempty"` // of the dataset
	Reason   string   `json:"reason,omitempty"`
	Place    *Place   `json:"place,omitempty"` // where To is; absent: not known
}

// TierCopyDamaged is the data of TypeTierCopyDamaged.
type TierCopyDamaged struct {
	Dataset  string `json:"dataset"`
	Sequence int64  `json:"sequence"`
	Tier     string `json:"tier"`
	URI      string `json:"uri"`
	SHA256   string `json:"sha256"` // that the copy should have
	Reason   string `json:"reason"`
	Healed   bool   `json:"healed"` // from another copy
}

// BatchExpired is the data of TypeBatchExpired.
type BatchExpired struct {
	Dataset string `json:"dataset"`
	From    int64  `json:"from"`
	To      int64  `json:"to"` // exclusive
	Reason  string `json:"reason,omitempty"`
}

// LabelDeclassified is the data of TypeLabelDeclassified. Its attribute stklabels has
// the labels from before.
type LabelDeclassified struct {
	Dataset string   `json:"dataset,omitempty"` // that loses the labels, or is written without them
	Model   string   `json:"model,omitempty"`   // of which a version is made without them, or Version loses them
	Version string   `json:"version,omitempty"` // that loses them
	Removed []string `json:"removed"`
	Labels  []string `json:"labels"` // that are left
	Reason  string   `json:"reason"`
}

// TriggerFired is the data of TypeTriggerFired.
type TriggerFired struct {
	Trigger string   `json:"trigger"`
	Key     string   `json:"key"`
	Run     string   `json:"run"`    // run that was started
	Events  []string `json:"events"` // ids of the events that led to it
}

// TriggerSuppressed is the data of TypeTriggerSuppressed.
type TriggerSuppressed struct {
	Trigger string   `json:"trigger"`
	Key     string   `json:"key"`
	Events  []string `json:"events"`
	Reason  string   `json:"reason"`
}

// ApprovalRequested is the data of TypeApprovalRequested.
type ApprovalRequested struct {
	Approval       string   `json:"approval"` // id, see ApprovalNeed
	Policy         string   `json:"policy"`   // "policy/rule" that asks
	Reason         string   `json:"reason"`
	Roles          []string `json:"roles,omitempty"`
	Quorum         int      `json:"quorum"`
	ExpiresSeconds float64  `json:"expires_seconds"`
	Requester      string   `json:"requester,omitempty"`
	EventID        string   `json:"event_id"` // of the event that waits
	EventType      string   `json:"event_type"`
}

// ApprovalDecided is the data of TypeApprovalDecided.
type ApprovalDecided struct {
	Approval  string         `json:"approval"`
	State     string         `json:"state"` // approved, rejected or expired
	Reason    string         `json:"reason"`
	Policy    string         `json:"policy"`
	EventID   string         `json:"event_id"`
	EventType string         `json:"event_type"`
	Requester string         `json:"requester,omitempty"`
	Votes     []ApprovalVote `json:"votes"` // that counted, in order
}

// ApprovalVote is one person's answer.
type ApprovalVote struct {
	Actor   string    `json:"actor"`
	Roles   []string  `json:"roles,omitempty"`
	Approve bool      `json:"approve"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// BudgetChanged is the data of TypeBudgetChanged. Whether it is allowed on publish is
// whether the limits change.
type BudgetChanged struct {
	How    string `json:"how"`              // applied (a whole document), set or raised
	Scope  string `json:"scope,omitempty"`  // e.g. team/late; empty: a whole document
	Window string `json:"window,omitempty"` // run, day or month
	Change string `json:"change"`           // for people
	Reason string `json:"reason"`
	// Weaker: some limit is higher than before, or gone, or what counts towards it has changed.
	Weaker bool          `json:"weaker"`
	Before *BudgetLimits `json:"before,omitempty"` // of the scope; absent: it had none
	After  *BudgetLimits `json:"after,omitempty"`
	Digest string        `json:"digest"` // of the document that is to be stored
	Over   int64         `json:"over"`   // revision that it replaces; 0: there was none
}

// BudgetLimits are the limits of one scope in one window; absent: no limit.
type BudgetLimits struct {
	Money              *float64           `json:"money,omitempty"`
	AcceleratorSeconds *float64           `json:"accelerator_seconds,omitempty"`
	Seconds            map[string]float64 `json:"seconds,omitempty"` // by accelerator
}

// BudgetExhausted is the data of TypeBudgetExhausted.
type BudgetExhausted struct {
	Pipeline    string  `json:"pipeline"`
	Run         string  `json:"run"`
	Stage       string  `json:"stage"`
	Attempt     int     `json:"attempt"`     // that was stopped, or not begun
	Accelerator string  `json:"accelerator"` // that the stage uses
	Scope       string  `json:"scope"`       // of the budget, e.g. team/late
	Window      string  `json:"window"`      // run, day or month
	Resource    string  `json:"resource"`    // money, accelerator-seconds, or "seconds:" and an accelerator
	Spent       float64 `json:"spent"`       // in the window, in units of the resource
	Limit       float64 `json:"limit"`
}
