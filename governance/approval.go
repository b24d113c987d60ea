package governance

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"time"

	"github.com/stokehold/stokehold/events"
)

// Approvals tells which approvals were given. Safe for concurrent use. The
// engine asks once for each rule that requires one and does not hold.
type Approvals interface {
	// Approved returns the grant of the approval of that id (ApprovalNeed.ID). The
	// error wraps ErrNotApproved while nobody, or too few, have approved, and
	// ErrRejected when somebody said no, which denies the event. With any other
	// error the approval counts as not given.
	Approved(ctx context.Context, id string) (Grant, error)
}

// Grant is an approval that was given. The engine counts By and looks at the
// times itself; that those who approved have the roles is the source's to check.
type Grant struct {
	ID      string    // of the approval
	By      []string  // who approved; the requester and who is there twice do not count
	At      time.Time // when the last of them did
	Expires time.Time // from when on the grant no longer counts; zero: At plus the rule's expiry
}

// Sentinels that a source of approvals answers with.
var (
	// ErrNotApproved: the approval is unknown, waits for people, or has expired.
	ErrNotApproved = errors.New("not approved")
	// ErrRejected: somebody who may approve has refused.
	ErrRejected = errors.New("approval rejected")
)

// approvalSpec is what a rule with the action requireApproval asks for.
type approvalSpec struct {
	Roles   []string      `json:"roles"`
	Quorum  int           `json:"quorum"`
	Expires time.Duration `json:"expires"` // nanoseconds in the canonical form
}

// Limits of an approval.
const (
	MaxRoles      = 16
	MaxQuorum     = 16
	MaxExpiry     = 90 * 24 * time.Hour
	defaultExpiry = 24 * time.Hour
)

const approvalTag = "stk-approval-1\x00"

// approvalIDLen is the length of an approval's id: 160 bits, so that nobody finds
// two events, one harmless, that share an approval.
const approvalIDLen = 40

// approvalID follows from the policy's own content, so that other policies may
// change while people think, the rule, and what the event is.
func approvalID(policyDigest *[sha256.Size]byte, rule string, content *[sha256.Size]byte) string {
	b := append([]byte(approvalTag), policyDigest[:]...)
	b = appendField(b, rule)
	b = append(b, content[:]...)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:approvalIDLen/2])
}

// valid says why a grant does not count; "" if it does.
func (g *Grant) valid(need *events.ApprovalNeed, now time.Time) string {
	if g.ID != need.ID {
		return "the source answered with another approval"
	}
	expires := g.Expires
	if expires.IsZero() {
		expires = g.At.Add(need.Expires)
	}
	if !now.Before(expires) {
		return "the approval has expired"
	}
	by := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(g.By))), func(who string) bool {
		return who == "" || who == need.Requester
	})
	if len(by) < need.Quorum {
		return "too few have approved, the requester apart"
	}
	return ""
}
