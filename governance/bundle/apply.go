package bundle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Codes of the decisions that Apply puts on record.
const (
	CodeApplied    = "PolicyApplied"
	CodeRolledBack = "PolicyRolledBack" // forced, by a bundle that begins an epoch
	CodeReplaced   = "PolicyReplaced"   // forced, in place of what cannot be verified
)

// DecisionType is the event type of those decisions. No event of it is published:
// the bundle in the store is the announcement.
const DecisionType = "policy.applied"

// Applying is what Apply needs.
type Applying struct {
	Store *Store
	Trust *Trust                 // in the bundles in the store, and in the new one
	Log   governance.DecisionLog // where it is on record before it takes effect
	Now   func() time.Time       // default time.Now
	Force bool                   // allows a roll-back, whose bundle gives the reason
	// Over is the revision that the new bundle was compared with; 0: that of none.
	// Another one there by now is ErrConflict.
	Over uint64
}

// Current returns the newest bundle in the store and its revision. Without one
// the error wraps ErrNotFound. A revision with another error is of an entry that
// cannot be verified.
func Current(ctx context.Context, s *Store, t *Trust) (*Bundle, uint64, error) {
	e, err := s.Get(ctx)
	if err != nil {
		return nil, 0, err
	}
	if e.Err != nil {
		return nil, e.Revision, e.Err
	}
	b, err := Open(e.Data, t)
	if err == nil && b.Name != s.cfg.Name {
		err = &FormatError{Msg: fmt.Sprintf("it is of the name %s", b.Name)}
	}
	if err != nil {
		return nil, e.Revision, fmt.Errorf("revision %d of bundle %s: %w", e.Revision, s.cfg.Name, err)
	}
	return b, e.Revision, nil
}

// Apply stores a bundle for all processes. It is refused with *RollbackError
// unless it is later than the one in the store; with Force, a bundle of the next
// epoch is taken, and one in place of an entry that cannot be verified. The
// decision log has it on record before it is written, with author and reason; a
// write that then fails is an entry in the log without an effect.
func Apply(ctx context.Context, a Applying, b *Bundle) (revision uint64, err error) {
	if a.Store == nil || a.Log == nil {
		return 0, fmt.Errorf("%w: Store and Log are required", ErrConfig)
	}
	if _, err := Open(b.raw, a.Trust); err != nil {
		return 0, fmt.Errorf("no process would take it: %w", err)
	}
	if err := a.Store.Create(ctx); err != nil {
		return 0, err
	}
	cur, over, err := Current(ctx, a.Store, a.Trust)
	code := CodeApplied
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil && over == 0:
		return 0, err
	case over != a.Over:
		return 0, fmt.Errorf("%w: bundle %s has revision %d by now: look at what is there and apply again", ErrConflict, b.Name, over)
	case err != nil && !a.Force:
		return 0, fmt.Errorf("what is in the store cannot be verified, so that nobody can tell whether this would be a roll-back; force it and give the reason: %w", err)
	case err != nil:
		if code = CodeReplaced; b.Reason == "" {
			return 0, fmt.Errorf("%w: a forced bundle needs a Reason", ErrConfig)
		}
	default:
		if err := follows(cur, b); err != nil {
			return 0, err
		}
		if b.Position.Epoch > cur.Position.Epoch {
			if !a.Force {
				return 0, &RollbackError{Name: b.Name, Have: cur.Position, Got: b.Position}
			}
			code = CodeRolledBack
		}
	}
	if a.Now == nil {
		a.Now = time.Now
	}
	if err := a.Log.Append(ctx, []governance.Decision{decision(cur, b, code, a.Now())}); err != nil {
		return 0, fmt.Errorf("policy bundle %s: not on record, so not applied: %w", b.Name, err)
	}
	return a.Store.Put(ctx, b, over)
}

// follows reports whether next may come after cur.
func follows(cur, next *Bundle) error {
	if sameContent(cur, next) {
		return nil
	}
	p, q := cur.Position, next.Position
	if q.Epoch == p.Epoch && q.Version > p.Version || q.Epoch == p.Epoch+1 {
		return nil
	}
	return &RollbackError{Name: next.Name, Have: p, Got: q}
}

// sameContent reports whether two bundles have one manifest; signatures may
// differ.
func sameContent(a, b *Bundle) bool { return a.text() == b.text() }

func decision(cur, b *Bundle, code string, now time.Time) governance.Decision {
	id := sha256.Sum256([]byte("stk-policy-1\x00" + b.text()))
	what := "applied"
	if cur != nil {
		what = fmt.Sprintf("replaces version %s", cur.Position)
	}
	reason := fmt.Sprintf("version %s by %s %s", b.Position, b.Author, what)
	if b.Reason != "" {
		reason += ": " + b.Reason
	}
	return governance.Decision{
		ID: hex.EncodeToString(id[:16]), Time: now.UTC(), Point: events.OnPublish, Action: events.Allow,
		EventID: fmt.Sprintf("%s/%d/%d", b.Name, b.Position.Epoch, b.Position.Version), Type: DecisionType, Source: "stokehold/policies",
		Subject: b.Name, Code: code, Reason: shorten(reason), Digest: short(b.Digest),
	}
}

// short is the form of a digest in stamps and decisions.
func short(digest string) string { return digest[len("sha256:"):][:32] }

func shorten(s string) string {
	const limit = 512
	for len(s) > limit {
		r := []rune(s)
		s = string(r[:len(r)-max(1, (len(s)-limit)/4)])
	}
	return s
}

// Next returns the position after cur in its epoch, or of the first bundle if cur
// is nil. A version that is not 0 is kept.
func Next(cur *Bundle, version uint64) Position {
	if cur == nil {
		return Position{Version: cmp.Or(version, 1)}
	}
	return Position{Epoch: cur.Position.Epoch, Version: cmp.Or(version, cur.Position.Version+1)}
}

// Place returns the position of a bundle of the given version, 0 for the next,
// that is to replace cur, which may be nil. A version that is not later is a
// roll-back: an error, or with force a position in the next epoch.
func Place(cur *Bundle, version uint64, force bool) (Position, error) {
	p := Next(cur, version)
	if cur == nil || p.Version > cur.Position.Version {
		return p, nil
	}
	if !force {
		return p, &RollbackError{Name: cur.Name, Have: cur.Position, Got: p}
	}
	p.Epoch++
	return p, nil
}

// Verified returns the bundles that the store keeps and that trusted keys signed,
// oldest first, with the entry of each. What cannot be verified has no Bundle and
// says why.
func Verified(ctx context.Context, s *Store, t *Trust) ([]Kept, error) {
	entries, err := s.History(ctx)
	if err != nil {
		return nil, err
	}
	var out []Kept
	for _, e := range entries {
		k := Kept{Entry: e}
		if k.Err == nil {
			k.Bundle, k.Err = Open(e.Data, t)
		}
		out = append(out, k)
	}
	return out, nil
}

// Kept is a bundle in the history of a store.
type Kept struct {
	Entry  // Err is also why there is no Bundle
	Bundle *Bundle
}
