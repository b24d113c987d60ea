package governance

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Decision is one entry of the decision log: who, what, when and why, without
// the event's data. Reasons are what policies say, so that a message expression
// is the one way for data to get here; they are cut to 512 bytes.
type Decision struct {
	ID       string // 32 hex digits; the same for the same event, point and policies
	Time     time.Time
	Point    events.Point
	Action   events.Action
	EventID  string
	Type     string
	Source   string
	Subject  string
	Pipeline string
	Run      string
	Policy   string // policy that decided; "" when none did
	Rule     string
	Code     string // the rule's reason word, or one of the Code constants
	Reason   string // one line for a person; "" for a plain allow
	Digest   string // of the policy set, as in stamps
	Actor    string // on whose behalf the event was published; "" if it does not say
	// Approval is the id of the approval that a RequireApproval waits for, or that
	// let the event pass; of several the first.
	Approval string
	// Effect is what a Redact or Route did to the event, as a URL query of paths,
	// columns and places, never values: "drop=data.email&route.region=eu".
	Effect string
	// Notes are the other rules that did not hold: warnings beside a denial, and
	// what policies in audit mode would have done. At most MaxNotes.
	Notes []Note
}

// Note is a rule that did not hold but did not decide either.
type Note struct {
	Policy, Rule, Reason string
	Mode                 Mode          // of the policy
	Action               events.Action // that the rule asks for, whatever the mode made of it
}

// MaxNotes bounds the notes of one decision.
const MaxNotes = 8

// Codes of decisions that no rule made.
const (
	CodeUnmatched  = "Unmatched"  // no policy matched: the set's default applied
	CodeNoPolicies = "NoPolicies" // the engine has no policies: denied
	CodeInvalid    = "Invalid"    // the event is not what can be judged: denied
	CodeEvaluation = "Evaluation" // an expression failed and the policy says deny
	CodeRejected   = "Rejected"   // an approval was refused: denied
	CodeRedaction  = "Redaction"  // without what is to be redacted the event would not be valid: denied
	CodeUnstamped  = "Unstamped"  // quarantined on receive
	CodeMalformed  = "Malformed"  // quarantined: the stamp cannot be read
	CodeUnknownKey = "UnknownKey" // quarantined: no key of that id
	CodeForged     = "Forged"     // quarantined: altered after stamping, or not ours
	CodeStale      = "Stale"      // quarantined: judged by policies no longer accepted
)

// DecisionLog keeps decisions. Append returns when all are durable, or with an
// error when some may not be; the caller then lets no event pass and may append
// the same decisions again. The slice and what it points to are the caller's
// again once Append returns. Safe for concurrent use.
type DecisionLog interface {
	Append(ctx context.Context, ds []Decision) error
}

// Counts are numbers of decisions, by point and action.
type Counts map[events.Point]map[events.Action]uint64

// Add adds n decisions.
func (c Counts) Add(p events.Point, a events.Action, n uint64) {
	m := c[p]
	if m == nil {
		m = map[events.Action]uint64{}
		c[p] = m
	}
	m[a] += n
}

// Judged returns the number of decisions at a point.
func (c Counts) Judged(p events.Point) uint64 {
	var n uint64
	for _, v := range c[p] {
		n += v
	}
	return n
}

// Denied returns the number of decisions at a point that let nothing pass.
func (c Counts) Denied(p events.Point) uint64 {
	var n uint64
	for a, v := range c[p] {
		if !a.Permits() {
			n += v
		}
	}
	return n
}

// MemoryLog is a DecisionLog in memory, for tests: nothing it holds survives
// the process. When full it refuses. The zero value holds a million decisions.
type MemoryLog struct {
	Limit int // decisions; default 1,000,000

	mu sync.Mutex
	ds []Decision
}

// Append implements DecisionLog.
func (l *MemoryLog) Append(ctx context.Context, ds []Decision) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	limit := l.Limit
	if limit <= 0 {
		limit = 1_000_000
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ds)+len(ds) > limit {
		return fmt.Errorf("%w: the memory log is full (%d decisions)", ErrLog, limit)
	}
	for _, d := range ds {
		d.Notes = slices.Clone(d.Notes)
		l.ds = append(l.ds, d)
	}
	return nil
}

// Read yields the decisions made at or after from, in the order they were
// appended. The zero time is the beginning.
func (l *MemoryLog) Read(ctx context.Context, from time.Time) iter.Seq2[Decision, error] {
	return func(yield func(Decision, error) bool) {
		l.mu.Lock()
		ds := l.ds[:len(l.ds):len(l.ds)]
		l.mu.Unlock()
		for _, d := range ds {
			if err := ctx.Err(); err != nil {
				yield(Decision{}, err)
				return
			}
			if d.Time.Before(from) {
				continue
			}
			if !yield(d, nil) {
				return
			}
		}
	}
}

// Count counts the decisions made at or after from.
func (l *MemoryLog) Count(ctx context.Context, from time.Time) (Counts, error) {
	c := Counts{}
	for d, err := range l.Read(ctx, from) {
		if err != nil {
			return nil, err
		}
		c.Add(d.Point, d.Action, 1)
	}
	return c, nil
}
