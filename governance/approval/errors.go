package approval

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels for the decisions a caller makes. All but ErrConfig come in an *Error.
var (
	// ErrNotFound: no request has that id.
	ErrNotFound = errors.New("no such approval request")
	// ErrAmbiguous: several requests begin with that prefix of an id, or it is too short.
	ErrAmbiguous = errors.New("ambiguous approval id")
	// ErrDecided: the request was approved or rejected; that stands for ever.
	ErrDecided = errors.New("the request is decided")
	// ErrExpired: nobody decided in time.
	ErrExpired = errors.New("the request has expired")
	// ErrRequester: whoever asks must not answer.
	ErrRequester = errors.New("the requester cannot decide")
	// ErrVoted: this person has voted; a vote stands.
	ErrVoted = errors.New("voted already")
	// ErrRole: the actor is unknown, or has none of the roles that are asked for.
	ErrRole = errors.New("not allowed to decide")
	// ErrInvalid: a request or vote that cannot be stored.
	ErrInvalid = errors.New("invalid approval")
	// ErrCorrupt: what the bucket holds is not what this package writes.
	ErrCorrupt = errors.New("unreadable approval record")
	// ErrUnavailable: the bucket did not answer, so that nothing is known.
	ErrUnavailable = errors.New("approvals unavailable")
	// ErrConfig: a configuration or a document of actors is faulty.
	ErrConfig = errors.New("invalid configuration of approvals")
)

// Error says what failed for which request.
type Error struct {
	Op    string // "request", "vote", "look", "settle", "list"
	ID    string // of the request, possibly shortened
	Actor string // of a vote
	Hint  string // what to do
	Err   error
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("approval: " + e.Op)
	if e.ID != "" {
		b.WriteString(" " + e.ID)
	}
	if e.Actor != "" {
		b.WriteString(" by " + e.Actor)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	if e.Hint != "" {
		fmt.Fprintf(&b, " (%s)", e.Hint)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }
