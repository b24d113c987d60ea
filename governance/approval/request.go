package approval

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// State is how far a request is.
type State string

// The states of a request. All but Pending are final.
const (
	Pending  State = "pending"
	Approved State = "approved"
	Rejected State = "rejected"
	Expired  State = "expired"
)

// Request is one question to people.
type Request struct {
	ID        string    `json:"id"`     // events.ApprovalNeed.ID: the same event asks once
	Policy    string    `json:"policy"` // "policy/rule" that asks
	Reason    string    `json:"reason"` // why
	Roles     []string  `json:"roles,omitempty"`
	Quorum    int       `json:"quorum"`
	Expires   Duration  `json:"expires"`             // after Created
	Requester string    `json:"requester,omitempty"` // "": a trigger or a service, not a person
	EventID   string    `json:"event_id"`
	Type      string    `json:"type"`
	Source    string    `json:"source"`
	Subject   string    `json:"subject,omitempty"`
	Pipeline  string    `json:"pipeline,omitempty"`
	Run       string    `json:"run,omitempty"`
	Workflow  string    `json:"workflow,omitempty"` // Temporal workflow that waits; "": none does
	Created   time.Time `json:"created"`            // by the server's clock
}

// Deadline is when the request expires, by the server's clock.
func (r *Request) Deadline() time.Time { return r.Created.Add(time.Duration(r.Expires)) }

// Duration is a time.Duration written as text ("24h0m0s").
type Duration time.Duration

// MarshalText writes what time.ParseDuration reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Vote is one person's answer.
type Vote struct {
	Actor   string    `json:"actor"`
	Roles   []string  `json:"roles,omitempty"` // as the one who counted knew them
	Approve bool      `json:"approve"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"` // by the server's clock

	revision uint64
}

// Outcome is what became of a request.
type Outcome struct {
	State  State     `json:"state"`
	At     time.Time `json:"at,omitzero"` // of the vote that decided, or of the expiry
	Reason string    `json:"reason,omitempty"`
	// Votes are those that counted, in the order in which the bucket took them.
	Votes []Vote `json:"votes,omitempty"`
	// Sealed: the outcome is stored and stands. Otherwise it is what the votes say
	// so far.
	Sealed bool `json:"sealed"`
}

// Status is a request with what became of it.
type Status struct {
	Request
	Outcome Outcome `json:"outcome"`
}

// By are those who approved.
func (o *Outcome) By() []string {
	var by []string
	for _, v := range o.Votes {
		if v.Approve {
			by = append(by, v.Actor)
		}
	}
	return by
}

// Limits of a request and a vote.
const (
	maxTextBytes  = 2 << 10
	maxVoteReason = 1 << 10
	maxValueBytes = 64 << 10
)

// DefaultSkew is how far clocks may be apart: nobody seals an expiry before the
// deadline has passed by this much on their own clock.
const DefaultSkew = time.Minute

// count is what the votes on r come to at now. Votes count in the order of their
// revisions until one decides: those of the requester, of actors without the
// role, and those that came after the deadline never do.
func count(r *Request, votes []Vote, who *Directory, now time.Time, skew time.Duration) Outcome {
	slices.SortFunc(votes, func(a, b Vote) int { return cmp.Compare(a.revision, b.revision) })
	out := Outcome{State: Pending}
	seen := map[string]bool{}
	for _, v := range votes {
		if v.Actor == r.Requester || seen[v.Actor] || !v.At.Before(r.Deadline()) || who.may(v.Actor, r) != "" {
			continue
		}
		seen[v.Actor] = true
		a, _ := who.Lookup(v.Actor)
		v.Roles = a.Roles
		out.Votes = append(out.Votes, v)
		if !v.Approve {
			out.State, out.At, out.Reason = Rejected, v.At, v.Actor+": "+v.Reason
			return out
		}
		if len(out.Votes) == r.Quorum {
			out.State, out.At, out.Reason = Approved, v.At, v.Actor+": "+v.Reason
			return out
		}
	}
	if now.After(r.Deadline().Add(skew)) {
		out.State, out.At = Expired, r.Deadline()
		out.Reason = fmt.Sprintf("%d of %d had approved by %s", len(out.Votes), r.Quorum, r.Deadline().UTC().Format(time.RFC3339))
	}
	return out
}

// newRequest makes a request of what a verdict asks for.
func newRequest(n *events.ApprovalNeed, workflow string) (Request, error) {
	r := Request{
		ID: n.ID, Policy: n.Policy, Reason: clip(n.Reason, maxTextBytes), Roles: n.Roles, Quorum: max(n.Quorum, 1), Expires: Duration(n.Expires),
		Requester: n.Requester, EventID: n.EventID, Type: n.Type, Source: n.Source, Subject: n.Subject, Pipeline: n.Pipeline, Run: n.Run, Workflow: workflow,
	}
	switch {
	case checkID(n.ID) != nil:
		return r, checkID(n.ID)
	case n.Expires <= 0 || n.Expires > governance.MaxExpiry:
		return r, fmt.Errorf("%w: it expires after %v: want more than 0 and at most %v", ErrInvalid, n.Expires, governance.MaxExpiry)
	case r.Quorum > governance.MaxQuorum || len(r.Roles) > governance.MaxRoles:
		return r, fmt.Errorf("%w: a quorum of %d among %d roles: at most %d among %d", ErrInvalid, r.Quorum, len(r.Roles), governance.MaxQuorum, governance.MaxRoles)
	}
	return r, nil
}

// idDigits is the length of an id; minDigits of a prefix that people type.
const (
	idDigits  = 40
	minDigits = 6
)

func checkID(id string) error {
	if len(id) != idDigits {
		return fmt.Errorf("%w: id %.50q: want %d hexadecimal digits", ErrInvalid, id, idDigits)
	}
	return checkHex(id)
}

func checkHex(id string) error {
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: id %.50q: want lower-case hexadecimal digits", ErrInvalid, id)
		}
	}
	return nil
}

// requestRecord and outcomeRecord are what the bucket holds: with the event as it
// was judged, to be published again if a crash came between the two.
type requestRecord struct {
	Request
	Event json.RawMessage `json:"event"`
}

type outcomeRecord struct {
	Outcome
	ID    string          `json:"id"`
	Event json.RawMessage `json:"event,omitempty"`
}

// voteRecord is what a person stores. Its author is the key's, its time the server's.
type voteRecord struct {
	Approve bool   `json:"approve"`
	Reason  string `json:"reason"`
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
