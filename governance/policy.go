package governance

import (
	"crypto/sha256"
	"encoding/hex"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/stokehold/stokehold/events"
)

// TypeSource says what an event type's data look like. *events.Registry is one.
type TypeSource interface {
	Lookup(name string) (events.Type, bool)
}

// Mode says how much of a policy takes effect, for rolling one out.
type Mode string

// The modes, from full effect to none.
const (
	Enforce  Mode = "enforce" // deny denies, warn warns
	WarnOnly Mode = "warn"    // deny only warns
	Audit    Mode = "audit"   // failures are only noted in the decision log
)

// ruleAction is what a rule that does not hold leads to.
type ruleAction string

const (
	actionDeny       ruleAction = "deny"
	actionWarn       ruleAction = "warn"
	actionQuarantine ruleAction = "quarantine"
	actionRedact     ruleAction = "redact"
	actionRoute      ruleAction = "route"
	actionApproval   ruleAction = "requireApproval"
)

// effect is what the bus is told.
func (a ruleAction) effect() events.Action {
	switch a {
	case actionWarn:
		return events.Warn
	case actionQuarantine:
		return events.Quarantine
	case actionRedact:
		return events.Redact
	case actionRoute:
		return events.Route
	case actionApproval:
		return events.RequireApproval
	default:
		return events.Deny
	}
}

// precedence orders actions: of several rules that do not hold the highest
// decides.
func precedence(a events.Action) int {
	switch a {
	case events.Allow:
		return 0
	case events.Warn:
		return 1
	case events.Route:
		return 2
	case events.Redact:
		return 3
	case events.RequireApproval:
		return 4
	case events.Quarantine:
		return 5
	default:
		return 6
	}
}

// failure says what an expression that cannot be evaluated leads to.
type failure string

const (
	failDeny   failure = "deny"
	failIgnore failure = "ignore"
)

// matchSpec selects events. Each non-empty list must have a pattern that
// matches; `*` stands for any characters, `?` for one.
type matchSpec struct {
	Types     []string `json:"types"`
	Subjects  []string `json:"subjects"`
	Pipelines []string `json:"pipelines"`
	Stages    []string `json:"stages"`
	Points    []string `json:"points"`
}

// variableSpec is a named expression, evaluated at most once an event and only
// if a rule reads it.
type variableSpec struct {
	Name       string `json:"name"`
	Expression string `json:"expression"`

	at *source
}

type ruleSpec struct {
	Name              string     `json:"name"`
	Expression        string     `json:"expression"`
	Message           string     `json:"message"`
	MessageExpression string     `json:"messageExpression"`
	Reason            string     `json:"reason"`
	Action            ruleAction `json:"action"`
	// What the action of that name does; nil with any other.
	Approval *approvalSpec `json:"approval,omitempty"`
	Redact   *redactSpec   `json:"redact,omitempty"`
	Route    *routeSpec    `json:"route,omitempty"`

	at, messageAt *source
	line          int
}

// policySpec is one document with its defaults filled in. Its JSON is what the
// digest covers, so that comments, layout and file names don't change it.
type policySpec struct {
	Name      string         `json:"name"`
	Match     matchSpec      `json:"match"`
	Params    []paramSpec    `json:"params,omitempty"`
	Variables []variableSpec `json:"variables"`
	Rules     []ruleSpec     `json:"rules"`
	Failure   failure        `json:"failure"`
	Mode      Mode           `json:"mode"`

	file string
	line int
}

// rule is a compiled rule.
type rule struct {
	id      string // "policy/rule"
	name    string
	check   *program
	message string
	dynamic *program // message expression; may be nil
	reason  string
	action  ruleAction
	spec    *ruleSpec
	paths   []dataPath // of a redaction
	// tainted: its dynamic message, or an error of check, can show event data.
	tainted, taintedMessage bool
}

// policy is a compiled policy. Immutable.
type policy struct {
	name    string
	spec    policySpec
	digest  [sha256.Size]byte // of spec
	data    *dataType
	params  *object // nil: none are declared
	vars    []variable
	rules   []rule
	failure failure
	mode    Mode
	publish bool
	receive bool
	impure  bool // some expression reads more than the event: now, point or a fact
	redacts bool // some rule takes out event data
}

// matches reports whether the event is one of the policy's, its type and point
// apart.
func (p *policy) matches(ev *eventVal) bool {
	m := &p.spec.Match
	return matchAny(m.Subjects, ev.ctx.GetSubject()) && matchAny(m.Pipelines, ev.ext.pipeline) && matchAny(m.Stages, ev.ext.stage)
}

// PolicySet is a set of compiled policies. Immutable and safe for concurrent
// use; an Engine swaps whole sets.
type PolicySet struct {
	policies []*policy // by name
	def      events.Action
	digest   [sha256.Size]byte
	ref      policyRef
	limits   Limits

	types TypeSource // may be nil

	byType typeIndex
	exact  map[string]*plan // of the types that policies name
	others sync.Map         // of other types seen: string -> *plan
	nOther atomic.Int64
}

// maxCachedTypes bounds the plans kept for event types that no policy names
// literally.
const maxCachedTypes = 4096

// plan is the policies for one event type.
type plan struct {
	// data is the registered type of the event's data; nil if there is none.
	// Policies that see the data untyped hold them to it all the same, because
	// their consumers will: encoding/json reads {"Labels": ...} as labels.
	data    *dataType
	publish policyIndex
	receive policyIndex
	// fresh is what remains to evaluate on receive when the stamp proves that
	// this very set permitted these very bytes: policies not evaluated on publish
	// and those whose outcome depends on the point or the time.
	fresh policyIndex
}

// Digest returns "sha256:" and the hex SHA-256 of the set's canonical content:
// the policies sorted by name with defaults filled in, the default action and
// the version of the expression language.
func (s *PolicySet) Digest() string { return "sha256:" + hex.EncodeToString(s.digest[:]) }

// ShortDigest returns the first 32 hex digits of the digest, which stamps carry.
func (s *PolicySet) ShortDigest() string { return s.ref.short }

// Default returns the action for events that no policy of the set matches on
// publish: events.Allow or events.Deny.
func (s *PolicySet) Default() events.Action { return s.def }

// Len returns the number of policies and of rules.
func (s *PolicySet) Len() (policies, rules int) {
	for _, p := range s.policies {
		rules += len(p.rules)
	}
	return len(s.policies), rules
}

// Names returns the policies' names, sorted.
func (s *PolicySet) Names() []string {
	out := make([]string, len(s.policies))
	for i, p := range s.policies {
		out[i] = p.name
	}
	return out
}

// plan returns the policies for an event type.
func (s *PolicySet) plan(typ string) *plan {
	if p, ok := s.exact[typ]; ok {
		return p
	}
	if p, ok := s.others.Load(typ); ok {
		return p.(*plan)
	}
	p := s.newPlan(typ)
	if s.nOther.Load() < maxCachedTypes {
		if _, loaded := s.others.LoadOrStore(strings.Clone(typ), p); !loaded {
			s.nOther.Add(1)
		}
	}
	return p
}

func (s *PolicySet) newPlan(typ string) *plan {
	pl := &plan{}
	if s.types != nil {
		if t, ok := s.types.Lookup(typ); ok && t.Data != nil {
			if d := newTypeTable().of(reflect.TypeOf(t.Data)); d.kind != kindDyn {
				pl.data = d
			}
		}
	}
	var publish, receive, fresh []*policy
	s.byType.of(s.policies, typ, func(p *policy) {
		if p.publish {
			publish = append(publish, p)
		}
		if p.receive {
			receive = append(receive, p)
			if p.impure || !p.publish {
				fresh = append(fresh, p)
			}
		}
	})
	pl.publish, pl.receive, pl.fresh = newPolicyIndex(publish), newPolicyIndex(receive), newPolicyIndex(fresh)
	return pl
}

func (s *PolicySet) seal() error {
	slices.SortFunc(s.policies, func(a, b *policy) int { return strings.Compare(a.name, b.name) })
	raw, err := s.Canonical()
	if err != nil {
		return err
	}
	s.digest = sha256.Sum256(raw)
	s.ref, _ = newPolicyRef(hex.EncodeToString(s.digest[:16])) // well-formed by construction
	s.byType = newTypeIndex(s.policies)
	s.exact = map[string]*plan{}
	for _, p := range s.policies {
		for _, t := range p.spec.Match.Types {
			if !isGlob(t) && s.exact[t] == nil {
				s.exact[t] = s.newPlan(t)
			}
		}
	}
	return nil
}

func isGlob(pattern string) bool { return strings.ContainsAny(pattern, "*?") }

// matchAny reports whether a pattern matches s; no patterns match everything.
func matchAny(patterns []string, s string) bool {
	if len(patterns) == 0 {
		return true
	}
	for _, p := range patterns {
		if p == s || isGlob(p) && glob(p, s) {
			return true
		}
	}
	return false
}

// glob matches `*` (any bytes, also none) and `?` (one byte) in time
// proportional to len(pattern)*len(s) at worst, without recursion.
func glob(pattern, s string) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, i
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			p++
			i++
		case star >= 0:
			mark++
			p, i = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
