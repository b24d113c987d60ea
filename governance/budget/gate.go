package budget

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// DecisionType is the event type of the decisions by which changes of limits are on
// record: those of the events that announce them, and one by who makes them.
const DecisionType = events.TypeBudgetChanged

// Codes of those decisions.
const (
	CodeApplied = "BudgetsApplied" // a whole document
	CodeSet     = "BudgetSet"
	CodeRaised  = "BudgetRaised"
)

// Gate makes changes of limits that are proposed: it works out what they change, has that
// judged, puts it on record, and stores them, in this order. Whoever proposes has no say in
// what the judge is told. It is for processes that may publish events and write limits.
// Safe for concurrent use.
type Gate struct {
	Store *Store
	Log   governance.DecisionLog // where it is on record before it takes effect
	// Bus is where Make has it judged before that. An error leaves the limits as they are.
	Bus interface {
		Publish(ctx context.Context, evs ...events.Event) error
	}
	Now func() time.Time // default time.Now
}

// Make implements Maker. A change that people must approve first is the same event when it
// is proposed again.
func (g Gate) Make(ctx context.Context, p Proposal) (Entry, error) {
	if g.Bus == nil {
		return Entry{}, fmt.Errorf("%w: Bus is required: it is judged there", ErrConfig)
	}
	if err := g.check(); err != nil {
		return Entry{}, err
	}
	c, err := g.draft(ctx, p)
	if err != nil {
		return Entry{}, err
	}
	ev, err := c.event(g.now())
	if err != nil {
		return Entry{}, err
	}
	if err := g.Bus.Publish(ctx, ev); err != nil {
		return Entry{}, fmt.Errorf("budget: not changed: %w", err)
	}
	return g.enact(ctx, c)
}

// Draft is the event by which a stored proposal is to be judged, as of now: it depends on
// nothing else than the proposal and the limits that there are. ErrConflict if these are
// others than it is to replace, ErrNotFound if there is no such proposal, ErrCorrupt if it
// is not what its id says, ErrUnavailable if the server does not answer.
func (g Gate) Draft(ctx context.Context, proposal string) (events.Event, error) {
	c, err := g.stored(ctx, proposal)
	if err != nil {
		return events.Event{}, err
	}
	return c.event(g.now())
}

// Enact makes the change of a stored proposal that was judged, and returns what is stored.
// Repeatable; errors are those of Draft, and the log's.
func (g Gate) Enact(ctx context.Context, proposal string) (Entry, error) {
	c, err := g.stored(ctx, proposal)
	if err != nil {
		return Entry{}, err
	}
	return g.enact(ctx, c)
}

// change is a proposal, and what it changes of the limits that there are.
type change struct {
	proposal Proposal
	next     *Document
	raw      []byte // next, as it is stored
	told     events.BudgetChanged
	done     *Entry // it was made already
}

func (g Gate) check() error {
	if g.Store == nil || g.Log == nil {
		return fmt.Errorf("%w: Store and Log are required", ErrConfig)
	}
	return nil
}

func (g Gate) stored(ctx context.Context, id string) (*change, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	p, err := g.Store.Proposal(ctx, id)
	if err != nil {
		return nil, err
	}
	return g.draft(ctx, p)
}

func (g Gate) draft(ctx context.Context, p Proposal) (*change, error) {
	next, err := p.document()
	if err != nil {
		return nil, err
	}
	c := &change{proposal: p, next: next}
	if c.raw, err = json.Marshal(next); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(c.raw) > MaxDocumentBytes {
		return nil, fmt.Errorf("%w: the document would have %d bytes, at most %d are allowed", ErrInvalid, len(c.raw), MaxDocumentBytes)
	}
	have, err := g.Store.Get(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	before := have.Document // nil: there is none, or it cannot be read
	switch {
	case have.Revision == p.Over:
	case have.made(p, c.raw):
		c.done, before = &have, nil
	default:
		return nil, errOthers
	}
	digest := sha256.Sum256(c.raw)
	c.told = before.difference(next, p.How)
	c.told.Weaker = p.Over > 0 && (before == nil || before.weakened(next))
	c.told.Reason, c.told.Digest, c.told.Over = p.Reason, hex.EncodeToString(digest[:16]), int64(p.Over)
	return c, nil
}

// made reports whether the entry is what a proposal has come to.
func (e *Entry) made(p Proposal, raw []byte) bool {
	if e.Document == nil || e.over != p.Over || e.Actor != p.Actor || e.Reason != p.Reason {
		return false
	}
	is, err := json.Marshal(e.Document)
	return err == nil && slices.Equal(is, raw)
}

func (c *change) subject() string { return cmp.Or(c.told.Scope, "budgets") }

func (c *change) event(now time.Time) (events.Event, error) {
	if c.done != nil {
		return events.Event{}, errOthers // to have it judged again would ask about another change
	}
	ev, err := events.New(events.TypeBudgetChanged, "/stokehold/budgets", c.subject(), fmt.Sprintf("budgets/%d/%s", c.told.Over, c.told.Digest), now, c.told)
	if err == nil {
		ev.SetExtension(events.ExtActor, c.proposal.Actor)
	}
	return ev, err
}

func (g Gate) enact(ctx context.Context, c *change) (Entry, error) {
	if c.done != nil {
		return *c.done, nil
	}
	p, now := c.proposal, g.now()
	id := sha256.Sum256(fmt.Appendf(nil, "stk-budget-1\x00%d\x00%x", p.Over, sha256.Sum256(c.raw)))
	if err := g.Log.Append(ctx, []governance.Decision{{
		ID: hex.EncodeToString(id[:16]), Time: now, Point: events.OnPublish, Action: events.Allow, EventID: fmt.Sprintf("budgets/%d", p.Over),
		Type: DecisionType, Source: "stokehold/budgets", Subject: c.subject(), Code: code(c.told.How), Actor: p.Actor,
		Reason: shorten(c.told.Change + ": " + p.Reason), Digest: c.told.Digest,
	}}); err != nil {
		return Entry{}, fmt.Errorf("budget: not on record, so not changed: %w", err)
	}
	revision, err := g.Store.put(ctx, entryRecord{p.Actor, p.Reason, c.told.Change, p.Over, c.raw}, p.Over)
	if err != nil {
		return Entry{}, err
	}
	return Entry{Revision: revision, Stored: now, Actor: p.Actor, Reason: p.Reason, Change: c.told.Change, Document: c.next, over: p.Over}, nil
}

func (g Gate) now() time.Time {
	if g.Now != nil {
		return g.Now().UTC()
	}
	return time.Now().UTC()
}

func code(how string) string {
	switch how {
	case set:
		return CodeSet
	case raised:
		return CodeRaised
	}
	return CodeApplied
}

// shorten cuts to what a decision's reason may have.
func shorten(s string) string {
	const limit = 512
	if len(s) <= limit {
		return s
	}
	n := limit
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
