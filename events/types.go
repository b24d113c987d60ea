package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

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
	TypeModelAliased       = "model.aliased"
	TypeModelRefused       = "model.refused"
	// TypeMigrationRequested is of a whole range, TypeTierMoveRequested of each batch.
	TypeMigrationRequested = "tier.migration.requested"
	TypeTierMoveRequested  = "tier.move.requested"
	TypeTierMoved          = "tier.moved"
	TypeTierCopyDamaged    = "tier.copy.damaged"
	TypeBatchExpired       = "batch.expired"
	TypeLabelDeclassified  = "label.declassified"
	TypeTriggerFired       = "trigger.fired"
	TypeTriggerSuppressed  = "trigger.suppressed"
	TypeApprovalRequested  = "approval.requested"
	TypeApprovalDecided    = "approval.decided"
	TypeBudgetExhausted    = "budget.exhausted"
	TypeBudgetChanged      = "budget.changed"
	TypePolicyRefused      = "policy.refused"
)

// maxTypeBytes bounds the name of an event type: it is part of every subject.
const maxTypeBytes = 128

// Type describes one event type.
type Type struct {
	Name        string // lower-case words joined by dots
	Description string
	Subject     string // what the CloudEvents subject names, for documentation
	Publisher   string // who publishes it, for documentation
	Data        any    // zero value of the Go type that the data must decode into, strictly; nil: any JSON object
}

// standardTypes is a function, not a variable, so that no test can change it for
// another.
func standardTypes() []Type {
	const dataset, model, run, trigger, asked = "dataset", "model", "run", "trigger", "as the event it is about"
	return []Type{
		{TypeRunStarted, "A run began", run, "workflows", RunStarted{}},
		{TypeRunCompleted, "A run ended with success", run, "workflows", RunCompleted{}},
		{TypeRunFailed, "A run gave up", run, "workflows", RunFailed{}},
		{TypeStageStarted, "An attempt at a stage began", run, "stages", StageStarted{}},
		{TypeStageCompleted, "A stage finished its work", run, "stages", StageCompleted{}},
		{TypeBatchPublished, "A batch is committed and may be read", dataset, "tiers", BatchPublished{}},
		{TypeDatasetSealed, "No more batches will come", dataset, "tiers", DatasetSealed{}},
		{TypeDriftDetected, "A detector crossed its threshold", model, "stages/drift", DriftDetected{}},
		{TypeModelRegistered, "A model version was stored", model, "models", ModelRegistered{}},
		{TypePromotionRequested, "A challenger asks to become champion; judging it is the gate", model, "stages/deploy", PromotionRequested{}},
		{TypeModelPromoted, "A version became the champion", model, "models", ModelPromoted{}},
		{TypeModelAliased, "An alias other than champion points to a new version", model, "models", ModelPromoted{}},
		{TypeModelRefused, "A challenger was refused and kept", model, "stages/deploy", ModelRefused{}},
		{TypeMigrationRequested, "A migration of a range of batches is about to begin; judging it is the gate, and the migration waits for approvals", dataset, "tiers", TierMigrationRequested{}},
		{TypeTierMoveRequested, "A batch is about to be copied to another tier; judging it is the gate", dataset, "tiers", TierMoveRequested{}},
		{TypeTierCopyDamaged, "A copy of a batch was found damaged or missing", dataset, "tiers", TierCopyDamaged{}},
		{TypeBatchExpired, "Batches are removed because their time is over", dataset, "tiers", BatchExpired{}},
		{TypeTierMoved, "A verified copy of a batch moved between tiers", dataset, "tiers", TierMoved{}},
		{TypeLabelDeclassified, "Labels are taken off a dataset or a model version, or left out of what a stage makes; denied unless a policy names this type", "dataset or model", "tiers, models, stages", LabelDeclassified{}},
		{TypeTriggerFired, "A trigger started a run", trigger, "workflows", TriggerFired{}},
		{TypeTriggerSuppressed, "A trigger saw events and started nothing", trigger, "workflows", TriggerSuppressed{}},
		{TypeApprovalRequested, "People are asked to approve an event", asked, "governance/approval", ApprovalRequested{}},
		{TypePolicyRefused, "A process does not take the newest policy bundle, and goes on with those that it has", "bundle", "stokehold", PolicyRefused{}},
		{TypeApprovalDecided, "A request for approval is decided, or expired undecided", asked, "governance/approval", ApprovalDecided{}},
		{TypeBudgetChanged, "Limits of what may be spent are about to change; judging it is the gate", "scope, or budgets", "workflows", BudgetChanged{}},
		{TypeBudgetExhausted, "A stage has nothing left to use, and waits for a budget", run, "workflows", BudgetExhausted{}},
	}
}

// Registry is the set of event types a bus lets through. A value, built once;
// read-only afterwards.
type Registry struct {
	types  map[string]registered
	sorted []Type
}

type registered struct {
	Type
	data *shape // nil: any JSON object
}

// NewRegistry returns a new registry holding the types above plus extra.
// Faults in extra (duplicate, malformed name) are all in one error.
func NewRegistry(extra ...Type) (*Registry, error) {
	r := &Registry{types: make(map[string]registered)}
	var faults []error
	for _, t := range append(standardTypes(), extra...) {
		if err := checkTypeName(t.Name); err != nil {
			faults = append(faults, fmt.Errorf("event type %q: %w", t.Name, err))
			continue
		}
		if _, ok := r.types[t.Name]; ok {
			faults = append(faults, fmt.Errorf("event type %q: declared twice", t.Name))
			continue
		}
		reg := registered{Type: t}
		if t.Data != nil {
			s, err := shapeOf(t.Data)
			if err != nil {
				faults = append(faults, fmt.Errorf("event type %q: data: %w", t.Name, err))
				continue
			}
			reg.data = s
		}
		r.types[t.Name] = reg
		r.sorted = append(r.sorted, t)
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("events: registry: %w", errors.Join(faults...))
	}
	slices.SortFunc(r.sorted, func(a, b Type) int { return strings.Compare(a.Name, b.Name) })
	return r, nil
}

// Lookup returns the type of that name.
func (r *Registry) Lookup(name string) (Type, bool) {
	t, ok := r.types[name]
	return t.Type, ok
}

// Check holds an event's data to its type: strictly the JSON that the type's Go
// struct encodes to, without unknown, duplicate or wrongly cased keys. The error
// wraps ErrUnknownType or ErrInvalid.
func (r *Registry) Check(ev *Event) error {
	t, ok := r.types[ev.Type()]
	if !ok {
		return ErrUnknownType
	}
	if len(ev.DataEncoded) == 0 {
		ec, err := contextOf(ev)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if _, elsewhere := ec.Extensions[ExtDataRef]; elsewhere || t.data == nil {
			return nil
		}
		return fmt.Errorf("%w: data: missing", ErrInvalid)
	}
	ct := ev.DataContentType()
	if media, _, _ := strings.Cut(ct, ";"); !strings.EqualFold(strings.TrimSpace(media), "application/json") {
		return fmt.Errorf("%w: datacontenttype: %.80q, must be application/json", ErrInvalid, ct)
	}
	if err := checkJSON(ev.DataEncoded, t.data); err != nil {
		return fmt.Errorf("%w: data: %w", ErrInvalid, err)
	}
	return nil
}

// All returns the types sorted by name.
func (r *Registry) All() []Type { return slices.Clone(r.sorted) }

// checkTypeName accepts lower-case words joined by dots. A word may hold digits,
// hyphens and underscores after its first letter.
func checkTypeName(name string) error {
	if name == "" {
		return errors.New("name is empty")
	}
	if len(name) > maxTypeBytes {
		return fmt.Errorf("name is longer than %d bytes", maxTypeBytes)
	}
	for word := range strings.SplitSeq(name, ".") {
		if word == "" || word[0] < 'a' || word[0] > 'z' {
			return errors.New("name must be lower-case words joined by dots")
		}
		for i := range len(word) {
			c := word[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return fmt.Errorf("name must be lower-case words joined by dots, found %q", c)
			}
		}
	}
	return nil
}
