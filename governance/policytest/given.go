package policytest

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/stokehold/stokehold/governance"
)

// facts are sources of the facts that a case gives, over what the event says. A
// misspelt name is an error.
func (c *Case) facts() (governance.Facts, error) {
	var known governance.Known
	raw, err := json.Marshal(c.Facts)
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		err = dec.Decode(&known)
	}
	return known.Facts(), err
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
