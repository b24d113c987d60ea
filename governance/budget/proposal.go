package budget

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"
)

// Proposal is limits that somebody asks for. What it changes, and whether more may be spent
// then, is for the Gate to find out.
type Proposal struct {
	Actor    string          `json:"actor"`
	Reason   string          `json:"reason"`
	How      string          `json:"how"`  // applied, set or raised; the latter two if one budget changes
	Over     uint64          `json:"over"` // the revision that it replaces; 0: there is none
	Document json.RawMessage `json:"document"`
}

// Values of Proposal.How.
const (
	applied = "applied"
	set     = "set"
	raised  = "raised"
)

const (
	maxReasonBytes = 1 << 10
	// proposalsKept is how long a proposal waits for people to approve it.
	proposalsKept = 100 * 24 * time.Hour
	// proposalBytes bounds all of them.
	proposalBytes = 64 << 20
)

func (p Proposal) check() error {
	switch {
	case p.Reason == "" || len(p.Reason) > maxReasonBytes || !utf8.ValidString(p.Reason):
		return fmt.Errorf("%w: the reason must be text of 1 to %d bytes", ErrInvalid, maxReasonBytes)
	case p.Actor == "" || len(p.Actor) > maxNameBytes || !utf8.ValidString(p.Actor):
		return fmt.Errorf("%w: the actor must be a name of 1 to %d bytes", ErrInvalid, maxNameBytes)
	case p.How != applied && p.How != set && p.How != raised:
		return fmt.Errorf("%w: limits are applied, set or raised, not %.80q", ErrInvalid, p.How)
	}
	return nil
}

// document checks the proposal and returns what it asks for.
func (p Proposal) document() (*Document, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	return ParseDocument(p.Document)
}

func proposalBucketName(prefix string) string { return prefix + "_budget_proposals" }

// Propose stores a proposal for a Gate to find, and returns its id: what it holds cannot be
// changed under that any more.
func (s *Store) Propose(ctx context.Context, p Proposal) (id string, err error) {
	if _, err := p.document(); err != nil {
		return "", err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	kv, err := s.bucket(ctx, jetstream.KeyValueConfig{
		Bucket: proposalBucketName(s.prefix), Description: "Stokehold: limits that are asked for; see docs/BUDGETS.md", Storage: jetstream.FileStorage,
		History: 1, TTL: proposalsKept, MaxBytes: proposalBytes, MaxValueSize: 2 * MaxDocumentBytes, Replicas: 1,
	})
	if err != nil {
		return "", err
	}
	id = proposalID(raw)
	if _, err = kv.Put(ctx, id, raw); err != nil {
		return "", fmt.Errorf("%w: propose limits: %w (may these credentials propose any?)", ErrUnavailable, err)
	}
	return id, nil
}

// Proposal returns a stored proposal. The error wraps ErrNotFound, or ErrCorrupt if it is
// not what its id says.
func (s *Store) Proposal(ctx context.Context, id string) (Proposal, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait)
	defer cancel()
	var e jetstream.KeyValueEntry
	kv, err := s.js.KeyValue(ctx, proposalBucketName(s.prefix))
	if err == nil {
		e, err = kv.Get(ctx, id)
	}
	switch {
	case errors.Is(err, jetstream.ErrBucketNotFound), errors.Is(err, jetstream.ErrKeyNotFound), errors.Is(err, jetstream.ErrInvalidKey):
		return Proposal{}, fmt.Errorf("%w: proposal %.80q of limits", ErrNotFound, id)
	case err != nil:
		return Proposal{}, fmt.Errorf("%w: read a proposal of limits: %w", ErrUnavailable, err)
	}
	var p Proposal
	if proposalID(e.Value()) != id || json.Unmarshal(e.Value(), &p) != nil {
		return Proposal{}, fmt.Errorf("%w: proposal %.80q of limits", ErrCorrupt, id)
	}
	return p, nil
}

func proposalID(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:16])
}
