package budget

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

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

// Changing is who changes limits, and how it goes on record.
type Changing struct {
	Store  *Store
	Log    governance.DecisionLog // where it is on record before it takes effect
	Bus    Publisher              // where it is judged before that
	Actor  string                 // who
	Reason string                 // why; required
	Now    func() time.Time       // default time.Now
}

// Publisher has a change judged and announces it. *events.Bus is one, for who may publish
// events; workflows.BudgetGate another, for who may not. The error, in particular one that
// wraps events.ErrDenied or events.ErrApprovalRequired, leaves the limits as they are. A
// change that people must approve first is the same event when it is tried again.
type Publisher interface {
	Publish(ctx context.Context, evs ...events.Event) error
}

const maxReasonBytes = 1 << 10

func (c *Changing) check() error {
	c.Reason = strings.Join(strings.Fields(c.Reason), " ")
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Store == nil || c.Log == nil || c.Bus == nil:
		return fmt.Errorf("%w: Store, Log and Bus are required", ErrConfig)
	case c.Reason == "" || len(c.Reason) > maxReasonBytes || !utf8.ValidString(c.Reason):
		return fmt.Errorf("%w: the reason must be text of 1 to %d bytes", ErrInvalid, maxReasonBytes)
	case c.Actor == "" || len(c.Actor) > maxNameBytes || !utf8.ValidString(c.Actor):
		return fmt.Errorf("%w: the actor must be a name of 1 to %d bytes", ErrInvalid, maxNameBytes)
	}
	return nil
}

// Apply puts a whole document in place of what there is, of the revision over; 0:
// of none. Another one there by now is ErrConflict. The decision log has it on
// record before it is stored.
func Apply(ctx context.Context, c Changing, raw []byte, over uint64) (Entry, error) {
	if err := c.check(); err != nil {
		return Entry{}, err
	}
	d, err := ParseDocument(raw)
	if err != nil {
		return Entry{}, err
	}
	var before *Document
	switch have, err := c.Store.Get(ctx); {
	case err == nil && have.Revision == over:
		before = have.Document // nil: it cannot be read
	case err == nil:
		return Entry{}, fmt.Errorf("%w: somebody else changed the limits meanwhile: look at them and try again", ErrConflict)
	case !errors.Is(err, ErrNotFound):
		return Entry{}, err
	}
	told := events.BudgetChanged{How: "applied", Weaker: over > 0 && (before == nil || before.weakened(d))}
	return c.store(ctx, d, over, CodeApplied, fmt.Sprintf("%d budgets applied", len(d.Budgets)), told)
}

// Set gives a scope's budget new limits, and adds the budget if there is none. A
// limit that more does not name stays. window may be empty where the scope has one
// budget.
func Set(ctx context.Context, c Changing, scope string, window Window, more Limits) (Entry, error) {
	return c.change(ctx, scope, window, CodeSet, func(l *Limits) error {
		if more.Money != nil {
			l.Money = more.Money
		}
		if more.AcceleratorSeconds != nil {
			l.AcceleratorSeconds = more.AcceleratorSeconds
		}
		for kind, s := range more.Seconds {
			l.Seconds = maps.Clone(l.Seconds)
			if l.Seconds == nil {
				l.Seconds = map[string]Micro{}
			}
			l.Seconds[kind] = s
		}
		return nil
	})
}

// Raise adds to limits that a scope's budget has.
func Raise(ctx context.Context, c Changing, scope string, window Window, by Limits) (Entry, error) {
	return c.change(ctx, scope, window, CodeRaised, func(l *Limits) error {
		none := func(resource string) error {
			return fmt.Errorf("%w: %s has no limit of %s to raise: set one", ErrNotFound, scope, resource)
		}
		if by.Money != nil {
			if l.Money == nil {
				return none(Money)
			}
			l.Money = new(min(maxAmount, *l.Money+*by.Money))
		}
		if by.AcceleratorSeconds != nil {
			if l.AcceleratorSeconds == nil {
				return none(AcceleratorSeconds)
			}
			l.AcceleratorSeconds = new(min(maxAmount, *l.AcceleratorSeconds+*by.AcceleratorSeconds))
		}
		l.Seconds = maps.Clone(l.Seconds)
		for kind, s := range by.Seconds {
			have, ok := l.Seconds[kind]
			if !ok {
				return none("seconds of " + kind)
			}
			l.Seconds[kind] = min(maxAmount, have+s)
		}
		return nil
	})
}

func (c Changing) change(ctx context.Context, scope string, window Window, code string, alter func(*Limits) error) (Entry, error) {
	if err := c.check(); err != nil {
		return Entry{}, err
	}
	kind, err := checkScope(scope)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: scope %.80q: %w", ErrInvalid, scope, err)
	}
	if kind == "run" && window == "" {
		window = PerRun
	}
	e, err := c.Store.Get(ctx)
	if errors.Is(err, ErrNotFound) && code == CodeSet {
		e, err = Entry{Document: &Document{APIVersion: DocumentVersion, Kind: DocumentKind}}, nil
	}
	if err == nil {
		err = e.Err
	}
	if err != nil {
		return Entry{}, err
	}
	next := *e.Document
	next.Budgets = slices.Clone(next.Budgets)
	i, err := next.find(scope, window)
	switch {
	case errors.Is(err, ErrNotFound) && kind == "run" && code == CodeRaised:
		// Of a run that a pattern covers, the raise makes a budget of its own.
		pipeline, _, _ := strings.Cut(strings.TrimPrefix(scope, "run/"), "/")
		for _, b := range next.concern(pipeline, strings.TrimPrefix(scope, "run/")) {
			if b.Scope == scope {
				next.Budgets, i, err = append(next.Budgets, b), len(next.Budgets), nil
			}
		}
	case errors.Is(err, ErrNotFound) && code == CodeSet && window != "":
		next.Budgets, i, err = append(next.Budgets, Budget{Scope: scope, Window: window}), len(next.Budgets), nil
	}
	if err != nil {
		return Entry{}, err
	}
	b := &next.Budgets[i]
	before, was := b.text(next.Currency), b.event()
	if err := alter(&b.Limits); err != nil {
		return Entry{}, err
	}
	after := b.text(next.Currency)
	if before == after {
		return e, fmt.Errorf("%w: nothing to change: give --money, --accelerator-seconds or --seconds other than what there is", ErrInvalid)
	}
	if err := next.check(); err != nil {
		return Entry{}, err
	}
	told := events.BudgetChanged{
		How: "set", Scope: scope, Window: string(b.Window), Before: was, After: b.event(), Weaker: e.Revision > 0 && e.Document.weakened(&next),
	}
	if code == CodeRaised {
		told.How = "raised"
	}
	return c.store(ctx, &next, e.Revision, code, fmt.Sprintf("%s per %s: %s, was %s", scope, b.Window, after, before), told)
}

// event is the limits as events tell of them; nil: there are none.
func (l Limits) event() *events.BudgetLimits {
	if l.Money == nil && l.AcceleratorSeconds == nil && len(l.Seconds) == 0 {
		return nil
	}
	out := &events.BudgetLimits{}
	if l.Money != nil {
		out.Money = new(l.Money.Float())
	}
	if l.AcceleratorSeconds != nil {
		out.AcceleratorSeconds = new(l.AcceleratorSeconds.Float())
	}
	for kind, s := range l.Seconds {
		if out.Seconds == nil {
			out.Seconds = map[string]float64{}
		}
		out.Seconds[kind] = s.Float()
	}
	return out
}

// weakened reports whether next lets something be spent that d does not. What cannot be
// compared counts as that.
func (d *Document) weakened(next *Document) bool {
	if d.Currency != next.Currency || d.TimeZone != next.TimeZone || !maps.EqualFunc(d.Teams, next.Teams, slices.Equal) || !maps.Equal(d.Prices, next.Prices) {
		return true
	}
	higher := func(was, is *Micro) bool { return was != nil && (is == nil || *is > *was) }
	for _, was := range d.Budgets {
		i := slices.IndexFunc(next.Budgets, func(b Budget) bool { return b.Scope == was.Scope && b.Window == was.Window })
		if i < 0 {
			return true
		}
		is := next.Budgets[i]
		if higher(was.Money, is.Money) || higher(was.AcceleratorSeconds, is.AcceleratorSeconds) {
			return true
		}
		for kind, s := range was.Seconds {
			if left, ok := is.Seconds[kind]; !ok || left > s {
				return true
			}
		}
	}
	// Of budgets of runs the most particular counts, so that a new one may be a raise.
	return slices.ContainsFunc(next.Budgets, func(b Budget) bool {
		return b.Window == PerRun && !slices.ContainsFunc(d.Budgets, func(was Budget) bool { return was.Scope == b.Scope && was.Window == b.Window })
	})
}

// find returns the index of a scope's budget.
func (d *Document) find(scope string, window Window) (int, error) {
	var found []int
	for i, b := range d.Budgets {
		if b.Scope == scope && (window == "" || b.Window == window) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return 0, fmt.Errorf("%w: %s has several budgets: say of which window", ErrInvalid, scope)
	case window == "":
		return 0, fmt.Errorf("%w: %s: say of which window (day or month) to set a new one", ErrNotFound, scope)
	}
	return 0, fmt.Errorf("%w: %s per %s", ErrNotFound, scope, window)
}

// text is the limits for people.
func (l Limits) text(currency string) string {
	var parts []string
	add := func(resource string, v Micro) {
		parts = append(parts, v.String()+" "+Balance{Resource: resource, Currency: currency}.unit())
	}
	if l.Money != nil {
		add(Money, *l.Money)
	}
	if l.AcceleratorSeconds != nil {
		add(AcceleratorSeconds, *l.AcceleratorSeconds)
	}
	for _, kind := range slices.Sorted(maps.Keys(l.Seconds)) {
		add(secondsOf+kind, l.Seconds[kind])
	}
	if len(parts) == 0 {
		return "no limit"
	}
	return strings.Join(parts, ", ")
}

func (c Changing) store(ctx context.Context, d *Document, over uint64, code, what string, told events.BudgetChanged) (Entry, error) {
	doc, err := json.Marshal(d)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if len(doc) > MaxDocumentBytes {
		return Entry{}, fmt.Errorf("%w: the document would have %d bytes, at most %d are allowed", ErrInvalid, len(doc), MaxDocumentBytes)
	}
	now := c.Now().UTC()
	digest := sha256.Sum256(doc)
	id := sha256.Sum256(fmt.Appendf(nil, "stk-budget-1\x00%d\x00%x", over, digest))
	subject := cmp.Or(told.Scope, "budgets")
	told.Change, told.Reason, told.Digest, told.Over = what, c.Reason, hex.EncodeToString(digest[:16]), int64(over)
	ev, err := events.New(events.TypeBudgetChanged, "/stokehold/budgets", subject, fmt.Sprintf("budgets/%d/%s", over, told.Digest), now, told)
	if err != nil {
		return Entry{}, err
	}
	ev.SetExtension(events.ExtActor, c.Actor)
	if err := c.Bus.Publish(ctx, ev); err != nil {
		return Entry{}, fmt.Errorf("budget: not changed: %w", err)
	}
	if err := c.Log.Append(ctx, []governance.Decision{{
		ID: hex.EncodeToString(id[:16]), Time: now, Point: events.OnPublish, Action: events.Allow, EventID: fmt.Sprintf("budgets/%d", over),
		Type: DecisionType, Source: "stokehold/budgets", Subject: subject, Code: code, Actor: c.Actor,
		Reason: shorten(what + ": " + c.Reason), Digest: hex.EncodeToString(digest[:16]),
	}}); err != nil {
		return Entry{}, fmt.Errorf("budget: not on record, so not changed: %w", err)
	}
	revision, err := c.Store.put(ctx, entryRecord{c.Actor, c.Reason, what, doc}, over)
	if err != nil {
		return Entry{}, err
	}
	return Entry{Revision: revision, Stored: now, Actor: c.Actor, Reason: c.Reason, Change: what, Document: d}, nil
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
