package policytest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// facts makes sources of the facts that a case gives. What it gives takes the
// place of what the event says.
func (c *Case) facts() (governance.Facts, error) {
	var f governance.Facts
	known := map[string]func(raw []byte) error{
		"batch": given(&f.Batch), "dataset": given(&f.Dataset), "model": given(&f.Model), "champion": given(&f.Champion),
		"run": given(&f.Run), "actor": given(&f.Actor), "worker": given(&f.Worker), "budget": given(&f.Budget),
	}
	for name, v := range c.Facts {
		set, ok := known[name]
		if !ok {
			return f, fmt.Errorf("unknown fact %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		raw, err := json.Marshal(v)
		if err == nil {
			err = set(raw)
		}
		if err != nil {
			return f, fmt.Errorf("fact %s: %w", name, err)
		}
	}
	return f, nil
}

// given returns what sets a source of one fact.
func given[T any](source *func(context.Context, *events.Event, *T) error) func(raw []byte) error {
	return func(raw []byte) error {
		read := func(into *T) error {
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.DisallowUnknownFields()
			return dec.Decode(into)
		}
		*source = func(_ context.Context, _ *events.Event, known *T) error { return read(known) }
		return read(new(T)) // a misspelt field is a fault of the case
	}
}

// approvals are the approvals of a case: every one that is asked for was given by
// those that it names, or by nobody.
type approvals struct {
	by []string
	at time.Time
}

// Approved implements governance.Approvals.
func (a approvals) Approved(_ context.Context, id string) (governance.Grant, error) {
	if len(a.by) == 0 {
		return governance.Grant{}, governance.ErrNotApproved
	}
	return governance.Grant{ID: id, By: a.by, At: a.at}, nil
}
