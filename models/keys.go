package models

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/tiers"
)

const (
	idDigits  = 64
	minDigits = 6
)

// errConflict: the key's revision is not the one expected.
var errConflict = errors.New("changed by another")

// token encodes a name as tiers does for datasets.
func token(kind, name string) (string, error) {
	if len(name) > maxNameBytes {
		return "", fmt.Errorf("%w: %s %.40q has %d bytes, at most %d", ErrInvalid, kind, name, len(name), maxNameBytes)
	}
	t, err := tiers.KeyToken(kind, name)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return t, nil
}

// Keys of the bucket:
//
//	version.MODEL.ID   versionRecord
//	alias.MODEL.ALIAS  aliasRecord
func versionKey(model, id string) (string, error) {
	name, err := token("model", model)
	if err != nil {
		return "", err
	}
	if len(id) != idDigits || strings.Trim(id, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: %.80q is not a version's id", ErrInvalid, id)
	}
	return "version." + name + "." + id, nil
}

func aliasKey(model, alias string) (string, error) {
	name, err := token("model", model)
	if err != nil {
		return "", err
	}
	a, err := token("alias", alias)
	if err != nil {
		return "", err
	}
	return "alias." + name + "." + a, nil
}

func (r *Registry) get(ctx context.Context, key string, v any) (uint64, error) {
	e, err := r.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", key, err)
	}
	if err := json.Unmarshal(e.Value(), v); err != nil {
		return 0, fmt.Errorf("decode %s: %w", key, err)
	}
	return e.Revision(), nil
}

// set stores v if key's revision is still rev (0: no such key), errConflict
// otherwise.
func (r *Registry) set(ctx context.Context, key string, v any, rev uint64) (uint64, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return 0, fmt.Errorf("encode %s: %w", key, err)
	}
	if len(raw) > maxEntryBytes {
		return 0, fmt.Errorf("%w: description of %d bytes, at most %d", ErrInvalid, len(raw), maxEntryBytes)
	}
	var got uint64
	if rev == 0 {
		got, err = r.kv.Create(ctx, key, raw)
	} else {
		got, err = r.kv.Update(ctx, key, raw, rev)
	}
	switch {
	case err == nil:
		return got, nil
	case errors.Is(err, jetstream.ErrKeyExists), errors.Is(err, jetstream.ErrKeyRevisionMismatch):
		return 0, errConflict
	}
	return 0, fmt.Errorf("set %s: %w", key, err)
}

// update reads key into rec, lets change change it, and stores it by
// compare-and-set until that holds. change returns false to leave it.
func (r *Registry) update(ctx context.Context, key string, rec *versionRecord, change func() (bool, error)) error {
	for range maxRaces {
		*rec = versionRecord{}
		rev, err := r.get(ctx, key, rec)
		if err != nil {
			return err
		}
		write, err := change()
		if err != nil || !write {
			return err
		}
		if _, err = r.set(ctx, key, rec, rev); err == nil || !errors.Is(err, errConflict) {
			return err
		}
	}
	return fmt.Errorf("%s: lost %d compare-and-sets in a row", key, maxRaces)
}

func (r *Registry) list(ctx context.Context, filter string, visit func(jetstream.KeyValueEntry) error) error {
	w, err := r.kv.Watch(ctx, filter, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("list %s: %w", filter, err)
	}
	defer func() { _ = w.Stop() }() // the consumer is ephemeral: the server drops it anyway
	for {
		select {
		case e, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("list %s: connection closed", filter)
			}
			if e == nil { // all that there was
				return nil
			}
			if err := visit(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return fmt.Errorf("list %s: %w", filter, ctx.Err())
		}
	}
}
