package approval

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Config configures a Store.
type Config struct {
	Conn   *nats.Conn // required; the store does not close it
	Prefix string     // of the bucket, PREFIX_approvals; default "stokehold"
	// Directory says who has which role; nil: nobody has any, and no vote counts.
	Directory *Directory
	Skew      time.Duration    // how far clocks may be apart; default DefaultSkew
	Clock     func() time.Time // default time.Now
	Replicas  int              // of the bucket, when it is made here; default 1
	MaxBytes  int64            // likewise; default 256 MiB; when full, requests and votes are refused
	MaxAge    time.Duration    // likewise; default 400 days, after which a request is unknown
}

// Store keeps requests, votes and outcomes. It implements governance.Approvals.
// Safe for concurrent use; it holds no resources.
type Store struct {
	js    jetstream.JetStream
	kv    jetstream.KeyValue
	who   *Directory
	skew  time.Duration
	clock func() time.Time
}

var _ governance.Approvals = (*Store)(nil)

var prefixRule = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)

// Open opens the bucket, or makes it.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.Prefix = cmp.Or(cfg.Prefix, "stokehold")
	cfg.Skew, cfg.Replicas = cmp.Or(cfg.Skew, DefaultSkew), cmp.Or(cfg.Replicas, 1)
	cfg.MaxBytes, cfg.MaxAge = cmp.Or(cfg.MaxBytes, 256<<20), cmp.Or(cfg.MaxAge, 400*24*time.Hour)
	var faults []error
	if cfg.Conn == nil {
		faults = append(faults, fmt.Errorf("%w: Conn is nil", ErrConfig))
	}
	if !prefixRule.MatchString(cfg.Prefix) {
		faults = append(faults, fmt.Errorf("%w: Prefix %.80q is not a lower-case word", ErrConfig, cfg.Prefix))
	}
	if cfg.Skew < 0 || cfg.MaxBytes < maxValueBytes || cfg.Replicas < 1 || cfg.Replicas > 5 {
		faults = append(faults, fmt.Errorf("%w: Skew %v, MaxBytes %d, Replicas %d: want a Skew that is not negative, at least %d bytes, 1 to 5 replicas",
			ErrConfig, cfg.Skew, cfg.MaxBytes, cfg.Replicas, maxValueBytes))
	}
	if cfg.MaxAge < 2*governance.MaxExpiry {
		faults = append(faults, fmt.Errorf("%w: MaxAge %v: a request must outlive its approval, so at least %v", ErrConfig, cfg.MaxAge, 2*governance.MaxExpiry))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("approval: %w: %w", ErrUnavailable, err)
	}
	want := jetstream.KeyValueConfig{
		Bucket: cfg.Prefix + "_approvals", Description: "Stokehold: approvals asked for and given", Storage: jetstream.FileStorage,
		History: 1, MaxValueSize: maxValueBytes, MaxBytes: cfg.MaxBytes, TTL: cfg.MaxAge, Replicas: cfg.Replicas,
	}
	kv, err := js.KeyValue(ctx, want.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if kv, err = js.CreateKeyValue(ctx, want); errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, want.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("approval: %w: bucket %s: %w (is JetStream enabled on the NATS server?)", ErrUnavailable, want.Bucket, err)
	}
	s := &Store{js: js, kv: kv, who: cfg.Directory, skew: cfg.Skew, clock: cfg.Clock}
	if s.clock == nil {
		s.clock = time.Now
	}
	return s, nil
}

// Directory is whom the store counts by.
func (s *Store) Directory() *Directory { return s.who }

// Approved implements governance.Approvals: it knows what is sealed. What was
// rejected, and what expired undecided, is ErrRejected with who said so and why.
func (s *Store) Approved(ctx context.Context, id string) (governance.Grant, error) {
	rec, err := s.outcome(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return governance.Grant{}, fmt.Errorf("approval: %s: %w", id, governance.ErrNotApproved)
	case err != nil:
		return governance.Grant{}, &Error{Op: "look", ID: id, Err: err}
	case rec.State == Approved:
		return governance.Grant{ID: rec.ID, By: rec.By(), At: rec.At}, nil
	case rec.State == Rejected:
		return governance.Grant{}, fmt.Errorf("%w by %s", governance.ErrRejected, rec.Reason)
	case rec.State == Expired:
		return governance.Grant{}, fmt.Errorf("%w: expired: %s", governance.ErrRejected, rec.Reason)
	}
	return governance.Grant{}, &Error{Op: "look", ID: id, Err: fmt.Errorf("%w: outcome %.40q", ErrCorrupt, rec.State)}
}

// Status returns a request by its id or by a unique prefix of at least 6 digits.
func (s *Store) Status(ctx context.Context, id string) (Status, error) {
	full, err := s.find(ctx, id)
	var st Status
	if err == nil {
		st, err = s.status(ctx, full)
	}
	if err != nil {
		hint := ""
		if errors.Is(err, ErrNotFound) {
			hint = "'stokehold approvals --all' lists them"
		}
		return Status{}, &Error{Op: "look", ID: id, Hint: hint, Err: err}
	}
	return st, nil
}

func (s *Store) status(ctx context.Context, id string) (Status, error) {
	req, err := s.request(ctx, id)
	if err != nil {
		return Status{}, err
	}
	st := Status{Request: req.Request}
	rec, err := s.outcome(ctx, id)
	if err == nil {
		st.Outcome = rec.Outcome
		return st, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return Status{}, err
	}
	votes, err := s.votes(ctx, id)
	if err != nil {
		return Status{}, err
	}
	st.Outcome = count(&st.Request, votes, s.who, s.clock(), s.skew)
	return st, nil
}

// Vote records actor's answer. It is refused, and nothing is stored, where it
// could not count: ErrNotFound, ErrDecided, ErrExpired, ErrRequester, ErrRole,
// ErrVoted. The same answer given again is a success. The status returned counts
// it; that a vote which came first has decided otherwise is ErrDecided too.
//
// The actor is as good as the credentials of the store's connection, see the
// package's documentation.
func (s *Store) Vote(ctx context.Context, id, actor string, approve bool, reason string) (Status, error) {
	st, hint, err := s.vote(ctx, id, actor, approve, reason)
	if err != nil {
		return st, &Error{Op: "vote on", ID: id, Actor: actor, Hint: hint, Err: err}
	}
	return st, nil
}

func (s *Store) vote(ctx context.Context, id, actor string, approve bool, reason string) (Status, string, error) {
	reason = strings.Join(strings.Fields(reason), " ")
	if err := checkActor(actor); err != nil {
		return Status{}, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if reason == "" || len(reason) > maxVoteReason || !utf8.ValidString(reason) {
		return Status{}, "", fmt.Errorf("%w: the reason must be text of 1 to %d bytes", ErrInvalid, maxVoteReason)
	}
	id, err := s.find(ctx, id)
	if err != nil {
		return Status{}, "'stokehold approvals' lists what waits", err
	}
	st, err := s.status(ctx, id)
	if err != nil {
		return st, "", err
	}
	mine := func(v Vote) bool { return v.Actor == actor }
	if i := slices.IndexFunc(st.Outcome.Votes, mine); i >= 0 && st.Outcome.Votes[i].Approve == approve {
		return st, "", nil // given before
	}
	switch {
	case st.Outcome.State == Approved || st.Outcome.State == Rejected:
		return st, string(st.Outcome.State) + " by " + st.Outcome.Reason, ErrDecided
	// By whichever clock is ahead: a vote that might be late is not given.
	case st.Outcome.State == Expired || !s.clock().Before(st.Deadline()):
		return st, "run the pipeline again, which asks anew", ErrExpired
	case actor == st.Requester:
		return st, "somebody else must", ErrRequester
	}
	if why := s.who.may(actor, &st.Request); why != "" {
		return st, "", fmt.Errorf("%w: %s", ErrRole, why)
	}
	raw, err := json.Marshal(voteRecord{approve, reason})
	if err != nil {
		return st, "", err
	}
	if _, err = s.kv.Create(ctx, voteKey(id, actor), raw); errors.Is(err, jetstream.ErrKeyExists) {
		return st, "", ErrVoted
	}
	if err != nil {
		return st, "check that your NATS credentials may write this key", fmt.Errorf("%w: %s: %w", ErrUnavailable, voteKey(id, actor), err)
	}
	if st, err = s.status(ctx, id); err != nil {
		return st, "", fmt.Errorf("the vote is stored: %w", err)
	}
	if st.Outcome.State != Pending && !slices.ContainsFunc(st.Outcome.Votes, mine) {
		if st.Outcome.State == Expired {
			return st, "the vote came too late", ErrExpired
		}
		return st, string(st.Outcome.State) + " by " + st.Outcome.Reason + ", which came first", ErrDecided
	}
	return st, "", nil
}

// List returns requests, the newest first; the decided ones too if all.
func (s *Store) List(ctx context.Context, all bool) ([]Status, error) {
	ids, err := s.ids(ctx, "request.*")
	var out []Status
	for _, id := range ids {
		var st Status
		if st, err = s.status(ctx, id); errors.Is(err, ErrNotFound) {
			err = nil // its time is over, or somebody deleted it
			continue
		}
		if err != nil {
			break
		}
		if all || st.Outcome.State == Pending {
			out = append(out, st)
		}
	}
	if err != nil {
		return nil, &Error{Op: "list", Err: err}
	}
	slices.SortFunc(out, func(a, b Status) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// ids lists the requests whose keys match a filter, also of what was deleted. It
// asks for the stream's subjects: KeyValue lists keys by a consumer, and whoever may
// make one has the server write where the consumer delivers to.
func (s *Store) ids(ctx context.Context, filter string) ([]string, error) {
	keys := "$KV." + s.kv.Bucket() + "."
	var info *jetstream.StreamInfo
	stream, err := s.js.Stream(ctx, "KV_"+s.kv.Bucket())
	if err == nil {
		info, err = stream.Info(ctx, jetstream.WithSubjectFilter(keys+filter))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: list %s: %w", ErrUnavailable, filter, err)
	}
	ids := make([]string, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		ids = append(ids, strings.TrimPrefix(strings.TrimPrefix(subject, keys), "request."))
	}
	slices.Sort(ids)
	return ids, nil
}

func (s *Store) find(ctx context.Context, id string) (string, error) {
	if err := checkHex(id); err != nil || len(id) > idDigits {
		return "", fmt.Errorf("%w: %.50q is not an id", ErrInvalid, id)
	}
	if len(id) == idDigits {
		return id, nil
	}
	if len(id) < minDigits {
		return "", fmt.Errorf("%w: give at least %d digits", ErrAmbiguous, minDigits)
	}
	all, err := s.ids(ctx, "request.*")
	if err != nil {
		return "", err
	}
	all = slices.DeleteFunc(all, func(full string) bool { return !strings.HasPrefix(full, id) })
	switch len(all) {
	case 0:
		return "", ErrNotFound
	case 1:
		return all[0], nil
	}
	return "", fmt.Errorf("%w: %d requests", ErrAmbiguous, len(all))
}

func requestKey(id string) string { return "request." + id }
func outcomeKey(id string) string { return "outcome." + id }

// voteKey ends with the actor as one token, so that NATS can grant one person's.
func voteKey(id, actor string) string { return "vote." + id + "." + actorToken(actor) }

// VoterSubjects are the NATS subjects that a person's credentials must be allowed
// to publish to, for voting as actor and for reading what is asked: no other key,
// and nothing that changes the bucket or makes a consumer of it. They are those of
// events.RoleApprover; prefix is Config.Prefix. nil where the two are no names.
func VoterSubjects(prefix, actor string) []string {
	g, err := events.Permissions(events.Access{Prefix: prefix, Role: events.RoleApprover, Actor: actor})
	if err != nil {
		return nil
	}
	return g.Publish
}

func actorToken(actor string) string { return events.ActorToken(actor) }

func actorOf(token string) string {
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		var c byte
		if n, _ := fmt.Sscanf(token[i:min(i+3, len(token))], "=%02X", &c); n == 1 {
			b.WriteByte(c)
			i += 2
			continue
		}
		b.WriteByte(token[i])
	}
	return b.String()
}

// get reads a key; ErrNotFound if it is not there.
func (s *Store) get(ctx context.Context, key string, v any) (jetstream.KeyValueEntry, error) {
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, key, err)
	}
	if err := json.Unmarshal(e.Value(), v); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, key, err)
	}
	return e, nil
}

func (s *Store) request(ctx context.Context, id string) (requestRecord, error) {
	var rec requestRecord
	e, err := s.get(ctx, requestKey(id), &rec)
	if err != nil {
		return rec, err
	}
	if rec.ID != id || rec.Quorum < 1 || rec.Expires <= 0 {
		return rec, fmt.Errorf("%w: %s", ErrCorrupt, requestKey(id))
	}
	rec.Created = e.Created().UTC()
	return rec, nil
}

func (s *Store) outcome(ctx context.Context, id string) (outcomeRecord, error) {
	var rec outcomeRecord
	if err := checkID(id); err != nil {
		return rec, err
	}
	if _, err := s.get(ctx, outcomeKey(id), &rec); err != nil {
		return rec, err
	}
	if rec.ID != id {
		return rec, fmt.Errorf("%w: %s", ErrCorrupt, outcomeKey(id))
	}
	rec.Sealed = true
	return rec, nil
}

// votes reads all votes on a request. One that cannot be read counts for nothing:
// else one person could keep all others from deciding.
func (s *Store) votes(ctx context.Context, id string) ([]Vote, error) {
	prefix := "vote." + id + "."
	keys, err := s.ids(ctx, prefix+"*")
	if err != nil {
		return nil, err
	}
	var out []Vote
	for _, key := range keys {
		var rec voteRecord
		e, err := s.get(ctx, key, &rec)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		token := strings.TrimPrefix(key, prefix)
		actor := actorOf(token)
		if actorToken(actor) != token || checkActor(actor) != nil {
			continue
		}
		out = append(out, Vote{Actor: actor, Approve: rec.Approve, Reason: clip(rec.Reason, maxVoteReason), At: e.Created().UTC(), revision: e.Revision()})
	}
	return out, nil
}

// create stores a key that is not there; false if it is.
func (s *Store) create(ctx context.Context, key string, v any) (bool, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return false, fmt.Errorf("encode %s: %w", key, err)
	}
	if len(raw) > maxValueBytes {
		return false, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrInvalid, key, len(raw), maxValueBytes)
	}
	_, err = s.kv.Create(ctx, key, raw)
	if errors.Is(err, jetstream.ErrKeyExists) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrUnavailable, key, err)
	}
	return true, nil
}
