package models

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models/safetensors"
	"github.com/stokehold/stokehold/tiers"
)

// Config configures a Registry.
type Config struct {
	Conn   *nats.Conn
	Bus    *events.Bus       // model.registered, model.promoted, model.refused
	Cold   tiers.ObjectStore // artifacts; nil: Dir alone
	Dir    string            // local copy of artifacts, fsynced: a store that does not sync is never the sole copy
	Prefix string            // KV bucket prefix; default "stokehold"
	// Labels says what the datasets of a version's lineage are; nil: a version has what
	// is declared, what its parent has, and what an Observer says.
	Labels LabelSource
	// Datasets says what the datasets that versions were made of are labelled with now, and
	// what they were made of. nil: they are not asked, and a label that comes to one after a
	// version was made does not bind the version.
	Datasets label.Nodes
	// Serving is where champions serve, and ColdPlace where Cold is.
	Serving, ColdPlace events.Place
}

// Registry is safe for concurrent use, also by several processes.
type Registry struct {
	kv        jetstream.KeyValue
	bus       bus
	artifacts *artifacts

	labels             LabelSource
	datasets           label.Nodes // nil: they are not asked
	observer           Observer    // nil: whoever holds the registry is not watched
	serving, coldPlace events.Place
}

// bus is what a Registry needs of *events.Bus.
type bus interface {
	Approve(ctx context.Context, evs ...*events.Event) error
	Publish(ctx context.Context, evs ...events.Event) error
}

const (
	source        = "/stokehold/models"
	maxEntryBytes = 256 << 10
	maxRaces      = 100
)

var validPrefix = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Open creates the bucket and the directory.
func Open(ctx context.Context, cfg Config) (*Registry, error) {
	var faults []error
	if cfg.Conn == nil {
		faults = append(faults, errors.New("config: Conn is missing"))
	}
	if cfg.Bus == nil {
		faults = append(faults, errors.New("config: Bus is missing"))
	}
	if cfg.Dir == "" {
		faults = append(faults, errors.New("config: Dir is missing: artifacts need a directory on disk"))
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "stokehold"
	}
	if !validPrefix.MatchString(cfg.Prefix) {
		faults = append(faults, fmt.Errorf("config: Prefix %.80q: want letters, digits, - and _, at most 64", cfg.Prefix))
	}
	for _, p := range []events.Place{cfg.Serving, cfg.ColdPlace} {
		if err := label.CheckPlace(p); err != nil {
			faults = append(faults, fmt.Errorf("config: %w", err))
		}
	}
	if len(faults) > 0 {
		return nil, fmt.Errorf("models: open registry: %w", errors.Join(faults...))
	}
	store, err := openArtifacts(cfg.Dir, cfg.Cold)
	if err != nil {
		return nil, fmt.Errorf("models: open registry: %w", err)
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("models: open registry: %w", err)
	}
	want := jetstream.KeyValueConfig{
		Bucket:       cfg.Prefix + "_models",
		Description:  "Stokehold: model versions and aliases",
		Storage:      jetstream.FileStorage,
		History:      1,
		MaxValueSize: maxEntryBytes,
	}
	kv, err := js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if kv, err = js.CreateKeyValue(ctx, want); errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, want.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("models: open registry: bucket %s: %w (is JetStream enabled on the NATS server?)", want.Bucket, err)
	}
	return &Registry{
		kv: kv, bus: cfg.Bus, artifacts: store, labels: cfg.Labels, datasets: cfg.Datasets, serving: cfg.Serving, coldPlace: cfg.ColdPlace,
	}, nil
}

// versionRecord is what is stored of a version.
type versionRecord struct {
	Version
	Event json.RawMessage `json:"event,omitempty"` // model.registered as approved
}

// Register stores artifact and its description. ID, Bytes, Created and Status
// are set here. Registering the same bytes again returns the stored version with
// metrics merged in and labels joined; lineage stays the first one's.
//
// The artifact is on disk, and in the cold tier if there is one, before the
// version can be seen. If governance refuses the event, nothing is stored and
// the error wraps events.ErrDenied.
func (r *Registry) Register(ctx context.Context, draft Version, artifact []byte) (Version, error) {
	draft.ID = digestOf(artifact)
	v, err := r.register(ctx, draft, artifact)
	if err != nil {
		return Version{}, &Error{Op: "register", Model: draft.Model, What: draft.Short(), Err: err}
	}
	return v, nil
}

func (r *Registry) register(ctx context.Context, draft Version, artifact []byte) (Version, error) {
	draft.Bytes, draft.Created, draft.Status, draft.Reason = int64(len(artifact)), time.Now().UTC(), Registered, ""
	if err := checkDraft(draft, artifact); err != nil {
		return Version{}, err
	}
	if err := r.inherit(ctx, &draft); err != nil {
		return Version{}, err
	}
	key, err := versionKey(draft.Model, draft.ID)
	if err != nil {
		return Version{}, err
	}
	var rec versionRecord
	_, err = r.get(ctx, key, &rec)
	if errors.Is(err, ErrNotFound) {
		rec, err = r.create(ctx, key, draft, artifact)
	} else if err == nil {
		// Perhaps the artifact was lost since; here it is.
		err = r.artifacts.put(ctx, draft.ID, artifact)
	}
	if err != nil {
		return Version{}, err
	}
	// Whoever stored it may have died before it could announce it.
	if err := r.announce(ctx, rec.Event); err != nil {
		return Version{}, err
	}
	if err := r.merge(ctx, key, draft.Metrics, draft.Labels, draft.MadeOf, &rec); err != nil {
		return Version{}, err
	}
	return rec.Version, nil
}

func (r *Registry) create(ctx context.Context, key string, draft Version, artifact []byte) (versionRecord, error) {
	rec := versionRecord{Version: draft}
	ev, err := r.approve(ctx, events.TypeModelRegistered, &draft, draft.Model+"/"+draft.ID, draft.Lineage.Run, draft.Lineage.Cause, events.ModelRegistered{
		Model: draft.Model, Version: draft.ID, Run: draft.Lineage.Run, Metrics: draft.Metrics, Cold: r.cold(),
	})
	if err != nil {
		return rec, err
	}
	rec.Event = ev
	if err := r.artifacts.put(ctx, draft.ID, artifact); err != nil {
		return rec, err
	}
	if _, err = r.set(ctx, key, rec, 0); errors.Is(err, errConflict) {
		_, err = r.get(ctx, key, &rec) // another registered the same bytes
	}
	return rec, err
}

// merge adds metrics, labels and sources to a stored version, and leaves the version as stored
// in rec.
func (r *Registry) merge(ctx context.Context, key string, metrics map[string]float64, labels label.Set, from []label.Source, rec *versionRecord) error {
	return r.update(ctx, key, rec, func() (bool, error) {
		changed := !rec.Labels.Covers(labels)
		joined, err := label.Join(rec.Labels, labels)
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		rec.Labels = joined
		if len(from) > 0 {
			// Those of a version from before they were recorded are in its lineage.
			made, news := label.AddSources(r.madeOf(&rec.Version), from...)
			if news {
				rec.MadeOf, changed = made, true
			}
			if len(made) > label.MaxSources {
				return false, tooManySources(len(made))
			}
		}
		merged := maps.Clone(rec.Metrics)
		for name, m := range metrics {
			if old, ok := merged[name]; !ok || old != m {
				changed = true
			}
			if merged == nil {
				merged = map[string]float64{}
			}
			merged[name] = m
		}
		rec.Metrics = merged
		return changed, checkMetrics(merged)
	})
}

func checkDraft(v Version, artifact []byte) error {
	if len(artifact) == 0 {
		return fmt.Errorf("%w: the artifact is empty", ErrInvalid)
	}
	if len(artifact) > MaxArtifactBytes {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(artifact), int64(MaxArtifactBytes))
	}
	if v.Kind == "" || len(v.Kind) > maxNameBytes {
		return fmt.Errorf("%w: kind %.40q: it says which predictor can serve the model", ErrInvalid, v.Kind)
	}
	switch v.Format {
	case Safetensors:
		if _, err := safetensors.Decode(artifact); err != nil {
			return fmt.Errorf("%w: %w", ErrArtifact, err)
		}
	case ONNX, Opaque:
	default:
		return fmt.Errorf("%w: format %.40q: want %s, %s or %s", ErrInvalid, v.Format, Safetensors, ONNX, Opaque)
	}
	return checkMetrics(v.Metrics)
}

// AddMetrics merges metrics (all finite) into a version.
func (r *Registry) AddMetrics(ctx context.Context, model, id string, metrics map[string]float64) error {
	err := checkMetrics(metrics)
	if err == nil {
		var v Version
		if v, err = r.find(ctx, model, id); err == nil {
			var key string
			if key, err = versionKey(model, v.ID); err == nil {
				err = r.merge(ctx, key, metrics, nil, nil, &versionRecord{})
			}
		}
	}
	if err != nil {
		return &Error{Op: "add metrics", Model: model, What: id, Err: err}
	}
	return nil
}

// Get returns a version by full id or unique prefix of at least 6 digits.
func (r *Registry) Get(ctx context.Context, model, id string) (Version, error) {
	v, err := r.used(r.find(ctx, model, id))
	if err != nil {
		return Version{}, &Error{Op: "get", Model: model, What: id, Err: err}
	}
	return v, nil
}

func (r *Registry) find(ctx context.Context, model, id string) (Version, error) {
	if strings.Trim(id, "0123456789abcdef") != "" || len(id) > idDigits {
		return Version{}, fmt.Errorf("%w: an id is lower-case hexadecimal of %d digits", ErrInvalid, idDigits)
	}
	if len(id) < minDigits {
		return Version{}, fmt.Errorf("%w: give at least %d digits", ErrAmbiguous, minDigits)
	}
	if len(id) == idDigits {
		key, err := versionKey(model, id)
		if err != nil {
			return Version{}, err
		}
		var rec versionRecord
		_, err = r.get(ctx, key, &rec)
		return rec.Version, err
	}
	var found []Version
	for v, err := range r.Versions(ctx, model) {
		if err != nil {
			return Version{}, err
		}
		if strings.HasPrefix(v.ID, id) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return Version{}, ErrNotFound
	case 1:
		return found[0], nil
	}
	return Version{}, fmt.Errorf("%w: %s and %s, for two", ErrAmbiguous, found[0].Short(), found[1].Short())
}

// Artifact returns the verified bytes. A local copy that is damaged or missing is
// restored from the cold tier. The error wraps ErrArtifact if no copy has the
// version's hash.
func (r *Registry) Artifact(ctx context.Context, v Version) ([]byte, error) {
	raw, err := r.artifacts.get(ctx, v.ID)
	if err == nil && r.observer != nil {
		// By what is stored: v is whatever the caller says.
		_, err = r.used(r.find(ctx, v.Model, v.ID))
	}
	if err != nil {
		return nil, &Error{Op: "load", Model: v.Model, What: v.Short(), Err: err}
	}
	return raw, nil
}

// Versions lists a model's versions by creation time.
func (r *Registry) Versions(ctx context.Context, model string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		var all []Version
		name, err := token("model", model)
		if err == nil {
			err = r.list(ctx, "version."+name+".*", func(e jetstream.KeyValueEntry) error {
				var rec versionRecord
				if err := json.Unmarshal(e.Value(), &rec); err != nil {
					return fmt.Errorf("decode %s: %w", e.Key(), err)
				}
				all = append(all, rec.Version)
				return nil
			})
		}
		if err != nil {
			yield(Version{}, &Error{Op: "list", Model: model, Err: err})
			return
		}
		slices.SortFunc(all, func(a, b Version) int {
			if d := a.Created.Compare(b.Created); d != 0 {
				return d
			}
			return strings.Compare(a.ID, b.ID)
		})
		for _, v := range all {
			if v, err = r.used(v, nil); err != nil {
				yield(Version{}, &Error{Op: "list", Model: model, Err: err})
				return
			}
			if !yield(v, nil) {
				return
			}
		}
	}
}

// Models lists the models by name.
func (r *Registry) Models(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		names := map[string]bool{}
		err := r.list(ctx, "version.*.*", func(e jetstream.KeyValueEntry) error {
			var rec versionRecord
			if err := json.Unmarshal(e.Value(), &rec); err != nil {
				return fmt.Errorf("decode %s: %w", e.Key(), err)
			}
			names[rec.Model] = true
			return nil
		})
		if err != nil {
			yield("", &Error{Op: "list", Model: "*", Err: err})
			return
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			if !yield(name, nil) {
				return
			}
		}
	}
}

// approve makes an event and has it judged; what comes back is the event as it
// may be published.
func (r *Registry) approve(ctx context.Context, typ string, v *Version, id, run, cause string, data any) (json.RawMessage, error) {
	ev, err := events.New(typ, source, v.Model, id, time.Now().UTC(), data)
	if err != nil {
		return nil, err
	}
	if run != "" {
		ev.SetExtension(events.ExtRun, run)
	}
	if cause != "" {
		ev.SetExtension(events.ExtCause, cause)
	}
	setLabels(&ev, v.Labels)
	if err := r.bus.Approve(ctx, &ev); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return raw, nil
}

// announce publishes an approved event; one already in the stream stays single.
func (r *Registry) announce(ctx context.Context, raw json.RawMessage) error {
	var ev events.Event
	if err := json.Unmarshal(raw, &ev); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	if err := r.bus.Publish(ctx, ev); err != nil {
		return fmt.Errorf("stored, but not announced: %w", err)
	}
	return nil
}
