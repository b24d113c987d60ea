package approval

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Bus is what a Coordinator needs of an *events.Bus.
type Bus interface {
	Approve(ctx context.Context, evs ...*events.Event) error
	Publish(ctx context.Context, evs ...events.Event) error
}

// Coordinator asks people on behalf of the deployment and seals what they decide.
// Both are events that policies judge before anything is stored. Any number may
// work on one request. Safe for concurrent use.
type Coordinator struct {
	Store *Store
	Bus   Bus
}

const source = "/stokehold/approvals"

// Request records what a verdict asks for and announces it. The same need again
// is a success and returns what became of it. workflow is the Temporal workflow
// that waits, for whoever votes to tell. The error wraps events.ErrDenied, and
// nothing is stored, if governance refuses approval.requested.
func (c *Coordinator) Request(ctx context.Context, need events.ApprovalNeed, workflow string) (Status, error) {
	st, err := c.request(ctx, &need, workflow)
	if err != nil {
		return st, &Error{Op: "request", ID: need.ID, Err: err}
	}
	return st, nil
}

func (c *Coordinator) request(ctx context.Context, need *events.ApprovalNeed, workflow string) (Status, error) {
	req, err := newRequest(need, workflow)
	if err != nil {
		return Status{}, err
	}
	rec, err := c.Store.request(ctx, req.ID)
	if errors.Is(err, ErrNotFound) {
		rec, err = c.create(ctx, req)
	}
	if err != nil {
		return Status{}, err
	}
	// Whoever stored it may have died before it could announce it.
	if err := c.announce(ctx, rec.Event); err != nil {
		return Status{}, err
	}
	return c.Store.status(ctx, req.ID)
}

func (c *Coordinator) create(ctx context.Context, req Request) (requestRecord, error) {
	ev, err := c.judged(ctx, &req, events.TypeApprovalRequested, "requested", c.Store.clock().UTC(), events.ApprovalRequested{
		Approval: req.ID, Policy: req.Policy, Reason: req.Reason, Roles: req.Roles, Quorum: req.Quorum, ExpiresSeconds: time.Duration(req.Expires).Seconds(),
		Requester: req.Requester, EventID: req.EventID, EventType: req.Type,
	})
	if err != nil {
		return requestRecord{}, err
	}
	if _, err := c.Store.create(ctx, requestKey(req.ID), requestRecord{req, ev}); err != nil {
		return requestRecord{}, err
	}
	return c.Store.request(ctx, req.ID) // the first one's, if there were two
}

// Settle counts the votes on a request and, if they or the clock decide, seals the
// outcome and announces it. What is sealed stays as it is. An approval that
// governance refuses to announce (a policy on approval.decided) is sealed as
// rejected, with the policy's reason.
func (c *Coordinator) Settle(ctx context.Context, id string) (Status, error) {
	st, err := c.settle(ctx, id)
	if err != nil {
		return st, &Error{Op: "settle", ID: id, Err: err}
	}
	return st, nil
}

func (c *Coordinator) settle(ctx context.Context, id string) (Status, error) {
	if err := checkID(id); err != nil {
		return Status{}, err
	}
	st, err := c.Store.status(ctx, id)
	if err != nil || st.Outcome.State == Pending {
		return st, err
	}
	if !st.Outcome.Sealed {
		if err := c.seal(ctx, &st); err != nil {
			return st, err
		}
	}
	rec, err := c.Store.outcome(ctx, id)
	if err != nil {
		return st, err
	}
	st.Outcome = rec.Outcome
	if len(rec.Event) == 0 {
		return st, nil
	}
	return st, c.announce(ctx, rec.Event)
}

func (c *Coordinator) seal(ctx context.Context, st *Status) error {
	rec := outcomeRecord{Outcome: st.Outcome, ID: st.ID}
	ev, err := c.decided(ctx, st, &rec.Outcome)
	if refused(err) && rec.State == Approved {
		rec.State, rec.Reason = Rejected, clip("governance: "+err.Error(), maxTextBytes)
		ev, err = c.decided(ctx, st, &rec.Outcome)
	}
	if err != nil && !refused(err) {
		return err
	}
	rec.Event = ev // nil: what is refused twice is sealed and not announced
	_, err = c.Store.create(ctx, outcomeKey(st.ID), rec)
	return err
}

func refused(err error) bool {
	return errors.Is(err, events.ErrDenied) || errors.Is(err, events.ErrApprovalRequired)
}

func (c *Coordinator) decided(ctx context.Context, st *Status, o *Outcome) (json.RawMessage, error) {
	d := events.ApprovalDecided{
		Approval: st.ID, State: string(o.State), Reason: o.Reason, Policy: st.Policy, EventID: st.EventID, EventType: st.Type, Requester: st.Requester,
		Votes: []events.ApprovalVote{},
	}
	for _, v := range o.Votes {
		d.Votes = append(d.Votes, events.ApprovalVote{Actor: v.Actor, Roles: v.Roles, Approve: v.Approve, Reason: v.Reason, At: v.At})
	}
	return c.judged(ctx, &st.Request, events.TypeApprovalDecided, string(o.State), o.At, d)
}

// judged makes an event and has it judged; what comes back is the event as it may
// be published.
func (c *Coordinator) judged(ctx context.Context, r *Request, typ, key string, at time.Time, data any) (json.RawMessage, error) {
	ev, err := events.New(typ, source, r.Subject, "approval/"+r.ID+"/"+key, at, data)
	if err != nil {
		return nil, err
	}
	for name, value := range map[string]string{
		events.ExtRun: r.Run, events.ExtPipeline: r.Pipeline, events.ExtCause: r.EventID, events.ExtActor: r.Requester,
	} {
		if value != "" {
			ev.SetExtension(name, value)
		}
	}
	if err := c.Bus.Approve(ctx, &ev); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(ev)
	if err != nil {
		return nil, fmt.Errorf("encode event: %w", err)
	}
	return raw, nil
}

// announce publishes a judged event; one already in the stream stays single.
func (c *Coordinator) announce(ctx context.Context, raw json.RawMessage) error {
	var ev events.Event
	if err := json.Unmarshal(raw, &ev); err != nil {
		return fmt.Errorf("%w: event: %w", ErrCorrupt, err)
	}
	err := c.Bus.Publish(ctx, ev)
	if refused(err) {
		return nil // it was judged when it was stored; today's policies differ, and the record stands
	}
	return err
}
