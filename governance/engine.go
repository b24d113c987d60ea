package governance

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cel.dev/cel-go/common/types"
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
)

// Config configures an Engine.
type Config struct {
	Policies *PolicySet  // nil: every event is denied until SetPolicies
	Log      DecisionLog // required
	Keys     *KeyRing    // required
	// Accept are short digests of earlier policy sets whose stamps are still
	// honoured on receive, besides the current set's. SetPolicies adds the set
	// it replaces.
	Accept []string
	Clock  func() time.Time // default time.Now; read once for each Judge call
	// Deadline bounds the time for evaluating the costly expressions of one
	// event; default 1 s. The cost limits, which do not depend on the machine's
	// load, are meant to end an evaluation well before.
	Deadline time.Duration
	// Approvals says which approvals were given; nil: none ever is.
	Approvals Approvals
	// Facts complete what expressions see beside the event.
	Facts Facts
	// FactsTimeout bounds the time that the sources of Facts and Approvals take for
	// one event, together; default 2 s.
	FactsTimeout time.Duration
}

// MaxAccepted bounds the earlier policy sets whose stamps are honoured; the
// oldest is dropped first.
const MaxAccepted = 16

// Engine judges events by policies. It implements events.Judge and
// events.Releaser. Safe for concurrent use.
type Engine struct {
	log      DecisionLog
	clock    func() time.Time
	deadline time.Duration

	approvals    Approvals
	facts        Facts
	factsTimeout time.Duration

	mu    sync.Mutex // serialises replacements of state
	state atomic.Pointer[engineState]
	stats engineStats
}

// engineState is what one Judge call works with from start to end.
type engineState struct {
	set    *PolicySet
	policy policyRef // of set; of emptyDigest without one
	keys   *KeyRing
	accept []policyRef // oldest first
}

// emptyDigest stands for the absence of policies in decisions.
const emptyDigest = "00000000000000000000000000000000"

var _ events.Releaser = (*Engine)(nil)

// NewEngine checks the configuration and returns an engine.
func NewEngine(cfg Config) (*Engine, error) {
	var faults []error
	var accept []policyRef
	if cfg.Log == nil {
		faults = append(faults, fmt.Errorf("%w: Log is nil; decisions must be durable before their effect", ErrConfig))
	}
	if cfg.Keys == nil {
		faults = append(faults, fmt.Errorf("%w: Keys is nil; stamps need a key (OpenKeyFile makes one)", ErrConfig))
	}
	if cfg.FactsTimeout < 0 {
		faults = append(faults, fmt.Errorf("%w: FactsTimeout is %s", ErrConfig, cfg.FactsTimeout))
	}
	if cfg.Deadline < 0 {
		faults = append(faults, fmt.Errorf("%w: Deadline is %s", ErrConfig, cfg.Deadline))
	}
	if len(cfg.Accept) > MaxAccepted {
		faults = append(faults, fmt.Errorf("%w: Accept has %d digests; the limit is %d", ErrConfig, len(cfg.Accept), MaxAccepted))
	}
	for _, d := range cfg.Accept {
		ref, ok := newPolicyRef(d)
		if !ok {
			faults = append(faults, fmt.Errorf("%w: Accept: %q is not a short digest (%d hex digits)", ErrConfig, d, policyLen))
		}
		accept = append(accept, ref)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	e := &Engine{
		log: cfg.Log, clock: cfg.Clock, deadline: cfg.Deadline,
		approvals: cfg.Approvals, facts: cfg.Facts, factsTimeout: cfg.FactsTimeout,
	}
	if e.clock == nil {
		e.clock = time.Now
	}
	if e.deadline == 0 {
		e.deadline = time.Second
	}
	if e.factsTimeout == 0 {
		e.factsTimeout = 2 * time.Second
	}
	e.state.Store(newState(cfg.Policies, cfg.Keys, accept))
	return e, nil
}

func newState(set *PolicySet, keys *KeyRing, accept []policyRef) *engineState {
	st := &engineState{set: set, keys: keys, accept: accept}
	if set != nil {
		st.policy = set.ref
	} else {
		st.policy, _ = newPolicyRef(emptyDigest)
	}
	return st
}

// accepted returns the earlier set of that short digest; nil if its stamps are
// not honoured.
func (st *engineState) accepted(short string) *policyRef {
	for i := range st.accept {
		if st.accept[i].short == short {
			return &st.accept[i]
		}
	}
	return nil
}

// SetPolicies replaces the policies for the Judge calls that start from now on
// and goes on honouring stamps of the set replaced. nil denies everything.
func (e *Engine) SetPolicies(set *PolicySet) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.state.Load()
	accept := slices.Clone(old.accept)
	if old.set != nil && old.accepted(old.policy.short) == nil {
		accept = append(accept, old.policy)
	}
	if n := len(accept) - MaxAccepted; n > 0 {
		accept = accept[n:]
	}
	e.state.Store(newState(set, old.keys, accept))
}

// SetKeys replaces the key ring.
func (e *Engine) SetKeys(keys *KeyRing) error {
	if keys == nil {
		return fmt.Errorf("%w: the key ring is nil", ErrConfig)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.state.Load()
	e.state.Store(newState(old.set, keys, old.accept))
	return nil
}

// Revoke stops honouring stamps of an earlier policy set.
func (e *Engine) Revoke(shortDigest string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.state.Load()
	e.state.Store(newState(old.set, old.keys, slices.DeleteFunc(slices.Clone(old.accept), func(r policyRef) bool { return r.short == shortDigest })))
}

// Policies returns the current set; nil if none.
func (e *Engine) Policies() *PolicySet { return e.state.Load().set }

// Accepted returns the short digests of the earlier sets still honoured, oldest
// first.
func (e *Engine) Accepted() []string {
	var out []string
	for _, r := range e.state.Load().accept {
		out = append(out, r.short)
	}
	return out
}

// judging is the reusable state of one Judge call.
type judging struct {
	scratch
	decisions []Decision
	pending   []pendingStamp
}

// pendingStamp is what is done to an event once its decision is durable.
type pendingStamp struct {
	ev   *events.Event
	ctx  *event.EventContextV1
	id   string // of the decision that permits the event; "": none, so that it gets no stamp
	e    [sha256.Size]byte
	data []byte             // in place of the event's; nil: the same
	set  reservedAttributes // of an empty one nothing is written
	keep bool               // there is nothing to take off
}

var judgingPool = sync.Pool{New: func() any { return &judging{} }}

// maxPooledDecisions keeps one huge call from holding its memory for ever.
const maxPooledDecisions = 4096

func (j *judging) release() {
	if cap(j.decisions) > maxPooledDecisions {
		return
	}
	clear(j.decisions)
	clear(j.pending)
	j.decisions, j.pending = j.decisions[:0], j.pending[:0]
	judgingPool.Put(j)
}

// Judge implements events.Judge. An error wraps ErrLog or the context's error;
// nothing was decided and no event was changed.
func (e *Engine) Judge(ctx context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	if at != events.OnPublish && at != events.OnReceive {
		return nil, fmt.Errorf("%w: unknown point %q", ErrConfig, at)
	}
	return e.judge(ctx, at, evs, nil)
}

// JudgeRelease implements events.Releaser. Rules with the action quarantine do not
// hold the event again; neither do they on receive, as long as its stamp is of the
// policies it was let go under. The error is as Judge gives it.
func (e *Engine) JudgeRelease(ctx context.Context, ev *events.Event, r events.Release) (events.Verdict, error) {
	if r.By == "" || r.Reason == "" {
		return events.Verdict{}, fmt.Errorf("%w: a release needs who and why", ErrConfig)
	}
	vs, err := e.judge(ctx, events.OnRelease, []*events.Event{ev}, &r)
	if err != nil {
		return events.Verdict{}, err
	}
	return vs[0], nil
}

func (e *Engine) judge(ctx context.Context, at events.Point, evs []*events.Event, release *events.Release) ([]events.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("governance: judge on %s: %w", at, err)
	}
	st := e.state.Load()
	now := e.clock().UTC()
	j := judgingPool.Get().(*judging)
	defer j.release()
	verdicts := make([]events.Verdict, len(evs))
	s := statePool.Get().(*evalState)
	defer s.release()
	s.engine, s.letGo = e, release
	s.point, s.now, s.deadline, s.pure = types.String(at), types.Timestamp{Time: now}, e.deadline, false
	for i, ev := range evs {
		j.one(ctx, st, s, at, now, ev, &verdicts[i])
	}
	if err := ctx.Err(); err != nil { // an evaluation may have been cut short: that is no denial
		return nil, fmt.Errorf("governance: judge on %s: %w", at, err)
	}
	if len(j.decisions) > 0 {
		if err := e.log.Append(ctx, j.decisions); err != nil {
			return nil, fmt.Errorf("%w: %d decision(s) on %s not confirmed, so that no event passes: %w", ErrLog, len(j.decisions), at, err)
		}
	}
	for i := range j.pending {
		j.finish(st, &j.pending[i])
	}
	for i := range j.decisions {
		e.stats.count(at, j.decisions[i].Action)
	}
	if n := len(evs) - len(j.decisions); n > 0 {
		e.stats.trusted.Add(uint64(n))
	}
	return verdicts, nil
}

// finish does to an event what its decision, now durable, says.
func (j *judging) finish(st *engineState, p *pendingStamp) {
	if p.data != nil {
		p.ev.DataEncoded = p.data
	}
	if !p.keep {
		removeStamp(p.ctx)
	}
	for _, x := range [...]struct{ name, value string }{
		{events.ExtRoute, p.set.route}, {events.ExtColumns, p.set.columns},
		{events.ExtApproval, p.set.approval}, {events.ExtReleased, p.set.released},
	} {
		if x.value == "" {
			continue
		}
		if p.ctx.Extensions == nil {
			p.ctx.Extensions = make(map[string]any, 2)
		}
		p.ctx.Extensions[x.name] = x.value
	}
	if p.id != "" {
		j.writeStamp(p.ctx, st.keys.signing, &st.policy, p.id, &p.e)
	}
}

// one judges one event: it appends the decision, if one was made, and what to
// do to the event.
func (j *judging) one(ctx context.Context, st *engineState, s *evalState, at events.Point, now time.Time, ev *events.Event, v *events.Verdict) {
	c, _ := contextOf(ev)
	if c == nil {
		d := notAnEvent(at, now, st.policy.short, ev)
		d.ID = invalidID(st, at, ev)
		j.decisions = append(j.decisions, d)
		*v = verdictOf(&j.decisions[len(j.decisions)-1])
		return
	}
	source := sourceString(&c.Source.URL)
	ext := readAttributes(c)
	data := ev.DataEncoded
	var digest [sha256.Size]byte
	j.eventDigest(&digest, c, source, &ext, data)

	mark, absent, wellFormed := readStamp(c)
	known, authentic, accepted := false, false, false
	if wellFormed {
		policy := &st.policy
		if accepted = mark.policy == policy.short && st.set != nil; !accepted {
			if policy = st.accepted(mark.policy); policy != nil {
				accepted = true
			} else if ref, ok := newPolicyRef(mark.policy); ok {
				policy = &ref // to tell a stale stamp from a forged one
			}
		}
		if policy != nil {
			known, authentic = j.authentic(st.keys, &mark, policy, &digest, ext.released != "")
		}
		wellFormed = authentic || mark.hexadecimal()
	}
	// A stamp proves that the set it names permitted what the event now is.
	current := authentic && mark.policy == st.policy.short && st.set != nil
	if at == events.OnPublish && current {
		*v = events.Verdict{Action: events.Allow, DecisionID: mark.decision}
		return
	}
	dirty := at != events.OnReceive && ext.isReserved()
	if dirty {
		// Nobody but the Judge sets these, and what an earlier set made of the event is
		// judged anew.
		ext.route, ext.columns, ext.approval, ext.released = "", "", "", ""
		j.eventDigest(&digest, c, source, &ext, data)
	}

	j.decisions = append(j.decisions, newDecision(at, now, st.policy.short, c, source, &ext))
	d := &j.decisions[len(j.decisions)-1]
	out := outcome{ext: ext}
	switch {
	case refuseInvalid(d, c, source, &ext, data):
	case at == events.OnReceive && absent:
		refuse(d, events.Quarantine, CodeUnstamped, "the event was never judged: it has no stamp")
	case at == events.OnReceive && !wellFormed:
		refuse(d, events.Quarantine, CodeMalformed, "the stamp cannot be read")
	case at == events.OnReceive && !known:
		refuse(d, events.Quarantine, CodeUnknownKey, "the stamp names a key that is not in the key ring")
	case at == events.OnReceive && !authentic:
		refuse(d, events.Quarantine, CodeForged, "the stamp does not fit the event: forged, or altered after it was judged")
	case st.set == nil:
		refuse(d, events.Deny, CodeNoPolicies, "no policies are loaded")
	case at == events.OnReceive && !accepted:
		refuse(d, events.Quarantine, CodeStale, "the event was judged by policies that are no longer accepted")
	case at == events.OnReceive && current && len(st.set.plan(c.Type).fresh.all) == 0:
		// What its stamp proves is all that is asked of it.
	case byLabels(d, ext.labels, data):
	default:
		s.reset(ctx, c, source, &ext, data, st.set.limits)
		s.ev = ev
		s.judge(st.set, d, current)
		s.settle(st.set, d, &j.scratch, &out)
		sayDeclassified(d, data)
		s.endEvent()
	}
	if out.changed {
		changed := data
		if out.data != nil {
			changed = out.data
		}
		j.eventDigest(&digest, c, source, &out.ext, changed)
	}
	d.ID = decisionID(at, &st.policy, &digest)
	switch {
	case at == events.OnReceive:
		if out.changed {
			j.pending = append(j.pending, pendingStamp{ev: ev, ctx: c, data: out.data, set: out.ext.reservedAttributes, keep: true})
		}
	case d.Action.Permits():
		j.pending = append(j.pending, pendingStamp{ev: ev, ctx: c, id: d.ID, e: digest, data: out.data, set: out.ext.reservedAttributes, keep: !dirty})
	case len(c.Extensions) > 0 || out.data != nil:
		j.pending = append(j.pending, pendingStamp{ev: ev, ctx: c, data: out.data})
	}
	*v = verdictOf(d)
	v.Approval = out.need
}

// newDecision is what allows an event until something says otherwise; it has no id.
func newDecision(at events.Point, now time.Time, policy string, c *event.EventContextV1, source string, ext *attributes) Decision {
	return Decision{
		Time: now, Point: at, Action: events.Allow, Digest: policy,
		EventID: c.ID, Type: c.Type, Source: source, Subject: deref(c.Subject), Pipeline: ext.pipeline, Run: ext.run, Actor: ext.actor,
	}
}

func notAnEvent(at events.Point, now time.Time, policy string, ev *events.Event) Decision {
	return Decision{
		Time: now, Point: at, Action: events.Deny, Code: CodeInvalid, Digest: policy,
		Reason: "not a CloudEvents 1.0 event", EventID: shorten(idOf(ev), maxReasonBytes), Type: shorten(typeOf(ev), maxReasonBytes),
	}
}

// refuseInvalid refuses what no policy may see.
func refuseInvalid(d *Decision, c *event.EventContextV1, source string, ext *attributes, data []byte) bool {
	switch {
	case c.ID == "" || c.Type == "" || source == "":
		refuse(d, events.Deny, CodeInvalid, "id, type and source are required")
	case tooLarge(c, source, ext):
		refuse(d, events.Deny, CodeInvalid, "an attribute exceeds the limit of 8 KiB")
		trimAttributes(d)
	case len(data) > events.MaxDataBytes:
		refuse(d, events.Deny, CodeInvalid, "the data exceed 64 KiB; send them by reference (dataref)")
	default:
		return false
	}
	return true
}

// judge evaluates the policies that match the event and writes the outcome to
// d. All are evaluated, also after a denial, so that what policies in audit mode
// say does not depend on the others.
func (s *evalState) judge(set *PolicySet, d *Decision, current bool) {
	pl := set.plan(d.Type)
	policies := &pl.publish
	if d.Point == events.OnReceive {
		policies = &pl.receive
		if current {
			policies = &pl.fresh
		}
	}
	s.strict, s.current = pl.data, current
	matched, declassifies := false, d.Type != events.TypeLabelDeclassified
	for c := policies.candidates(&s.event); ; {
		p := c.take()
		if p == nil {
			break
		}
		if !p.matches(&s.event) {
			continue
		}
		matched = true
		declassifies = declassifies || p.permitsDeclassification()
		s.use(p.data, p.vars)
		s.params = p.params
		for i := range p.rules {
			s.rule(p, &p.rules[i], d)
		}
	}
	if !declassifies && d.Point != events.OnReceive && precedence(d.Action) < precedence(events.Deny) {
		d.Policy, d.Rule, s.decider = "", "", finding{}
		refuse(d, events.Deny, CodeDeclassification, "no policy names "+events.TypeLabelDeclassified+" among its types and is enforced, so that labels stay as they are")
		return
	}
	if !matched && d.Point != events.OnReceive {
		d.Code = CodeUnmatched
		if set.def != events.Allow {
			refuse(d, set.def, CodeUnmatched, "no policy matches the event, and the default is "+string(set.def))
		}
	}
}

// rule evaluates one rule.
func (s *evalState) rule(p *policy, r *rule, d *Decision) {
	holds, err := s.evalBool(r.check)
	if holds && err == nil {
		return
	}
	f := finding{p: p, r: r, effect: r.action.effect(), code: r.reason, reason: r.message}
	switch {
	case err != nil:
		f.effect, f.code, f.reason, f.tainted = events.Deny, CodeEvaluation, reasonOf(err), r.tainted
		s.secret = s.secret || p.redacts // what the rule would have taken out is not known
		if p.failure == failIgnore {
			f.reason = "ignored: " + f.reason
			s.note(d, &f)
			return
		}
	case r.dynamic != nil:
		if msg, err := s.evalString(r.dynamic); err == nil && msg != "" {
			f.reason, f.tainted = msg, r.taintedMessage
		} else if f.reason == "" {
			f.reason = "must hold: " + shorten(r.check.src, 200)
		}
	}
	if f.effect == events.Redact {
		s.secret = s.secret || len(r.paths) > 0
	}
	s.found(d, &f)
}

func reasonOf(err error) string {
	var ee *EvalError
	if errors.As(err, &ee) {
		return ee.Kind.Error() + ": " + ee.Msg
	}
	return err.Error()
}

func refuse(d *Decision, a events.Action, code, reason string) {
	d.Action, d.Code, d.Reason = a, code, reason
}

func verdictOf(d *Decision) events.Verdict {
	v := events.Verdict{Action: d.Action, DecisionID: d.ID, Reason: d.Reason}
	if d.Policy != "" {
		v.Policy = d.Policy + "/" + d.Rule
	}
	return v
}

// contextOf returns the attributes of a CloudEvents 1.0 event.
func contextOf(ev *events.Event) (*event.EventContextV1, bool) {
	if ev == nil {
		return nil, false
	}
	c, ok := ev.Context.(*event.EventContextV1)
	return c, ok
}

func idOf(ev *events.Event) string {
	if ev == nil || ev.Context == nil {
		return ""
	}
	return ev.Context.GetID()
}

func typeOf(ev *events.Event) string {
	if ev == nil || ev.Context == nil {
		return ""
	}
	return ev.Context.GetType()
}

func invalidID(st *engineState, at events.Point, ev *events.Event) string {
	e := sha256.Sum256([]byte(typeOf(ev) + "\x00" + idOf(ev)))
	return decisionID(at, &st.policy, &e)
}

func tooLarge(c *event.EventContextV1, source string, a *attributes) bool {
	const limit = maxAttributeBytes
	return len(c.ID) > limit || len(c.Type) > limit || len(source) > limit || len(deref(c.Subject)) > limit || len(deref(c.DataContentType)) > limit ||
		len(a.pipeline) > limit || len(a.run) > limit || len(a.stage) > limit || len(a.cause) > limit || len(a.dataref) > limit ||
		len(a.actor) > limit || len(a.labels) > limit || len(a.route) > limit || len(a.columns) > limit || len(a.approval) > limit || len(a.released) > limit
}

// trimAttributes keeps oversized attributes out of the log.
func trimAttributes(d *Decision) {
	for _, s := range []*string{&d.EventID, &d.Type, &d.Source, &d.Subject, &d.Pipeline, &d.Run, &d.Actor} {
		*s = shorten(*s, maxReasonBytes)
	}
}
