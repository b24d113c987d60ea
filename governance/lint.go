package governance

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/stokehold/stokehold/events"
)

// Warning is something in policies that is allowed and probably not meant.
type Warning struct {
	File   string // "" for a policy that came from no file
	Line   int    // 1-based; 0 when unknown
	Policy string
	Rule   string // "" for a warning about the policy
	Code   string // one of the Lint constants
	Msg    string
}

// String is one line for a person, as the faults of a LoadError are.
func (w Warning) String() string {
	e := PolicyError{File: w.File, Line: w.Line, Policy: w.Policy, Rule: w.Rule, Msg: w.Msg + " [" + w.Code + "]"}
	return e.Error()
}

// Codes of warnings.
const (
	LintDuplicate   = "duplicate"   // a rule says what another says
	LintUnreachable = "unreachable" // a rule can never decide, or its policy match no event
	LintAlways      = "always"      // no event that the policy matches can pass
	LintUnused      = "unused"      // a variable or parameter that nothing reads
	LintUnbound     = "unbound"     // a parameter without a value: what reads it fails
	LintRoute       = "route"       // a route that nothing follows, or that is refused
	LintApproval    = "approval"    // an approval that nobody is asked for
)

// Lint returns what is probably not meant in a set, in the order of policies and
// their rules. It evaluates only what reads nothing, within the usual limits.
func Lint(set *PolicySet) []Warning {
	if set == nil {
		return nil
	}
	l := linter{set: set, seen: map[string]*rule{}}
	for _, p := range set.policies {
		l.policy(p)
	}
	slices.SortStableFunc(l.out, func(a, b Warning) int {
		return cmp.Or(strings.Compare(a.Policy, b.Policy), cmp.Compare(a.Line, b.Line))
	})
	return l.out
}

type linter struct {
	set  *PolicySet
	seen map[string]*rule // by all that a rule says
	out  []Warning
}

func (l *linter) warn(p *policy, r *rule, line int, code, format string, args ...any) {
	w := Warning{File: p.spec.file, Line: line, Policy: p.name, Code: code, Msg: fmt.Sprintf(format, args...)}
	if r != nil {
		w.Rule = r.name
	}
	l.out = append(l.out, w)
}

func (l *linter) policy(p *policy) {
	l.match(p)
	reads := map[string]bool{}
	var always *rule // that no event passes
	for i := range p.rules {
		r := &p.rules[i]
		if outcome := constant(r.check); r.action == actionDeny && p.mode == Enforce && (outcome == "false" || outcome == "fails") && always == nil {
			always = r
		}
	}
	for i := range p.rules {
		r := &p.rules[i]
		for _, prg := range []*program{r.check, r.dynamic} {
			if prg != nil {
				collect(reads, p, prg)
			}
		}
		l.rule(p, r, always)
	}
	for i := range p.vars {
		v := &p.vars[i]
		if !reads[v.name] {
			l.warn(p, nil, p.spec.Variables[i].at.node.Line, LintUnused, "nothing reads %s", v.name)
		}
	}
	for i := range p.spec.Params {
		q := &p.spec.Params[i]
		name := declParams + "." + q.Name
		switch {
		case !reads[name]:
			l.warn(p, nil, q.line, LintUnused, "nothing reads %s", name)
		case q.Value == nil:
			l.warn(p, nil, q.line, LintUnbound, "%s has no value: what reads it fails; give it a default, or a value in a %s document", name, KindBinding)
		}
	}
}

// collect adds what a program reads, itself and through variables.
func collect(into map[string]bool, p *policy, prg *program) {
	for name := range prg.reads {
		if into[name] {
			continue
		}
		into[name] = true
		for i := range p.vars {
			if p.vars[i].name == name {
				collect(into, p, p.vars[i].prg)
			}
		}
	}
}

// match warns of patterns of types that no registered type has.
func (l *linter) match(p *policy) {
	all, ok := l.set.types.(interface{ All() []events.Type })
	if !ok || l.set.types == nil || reflect.ValueOf(l.set.types).Kind() == reflect.Pointer && reflect.ValueOf(l.set.types).IsNil() {
		return
	}
	hit := len(p.spec.Match.Types) == 0
	for _, pattern := range p.spec.Match.Types {
		found := slices.ContainsFunc(all.All(), func(t events.Type) bool { return matchAny([]string{pattern}, t.Name) })
		if !found {
			l.warn(p, nil, p.spec.line, LintUnreachable, "no registered event type matches %q", pattern)
		}
		hit = hit || found
	}
	if !hit {
		l.warn(p, nil, p.spec.line, LintUnreachable, "the policy matches no event")
	}
}

func (l *linter) rule(p *policy, r *rule, always *rule) {
	switch outcome := constant(r.check); {
	case outcome == "true":
		l.warn(p, r, r.spec.line, LintUnreachable, "the rule always holds: %s reads nothing", r.check.src)
	case outcome == "fails":
		l.warn(p, r, r.spec.line, LintAlways, "the expression fails for every event: %s", shorten(r.check.src, 80))
	case outcome == "false" && r == always:
		l.warn(p, r, r.spec.line, LintAlways, "no event that the policy matches can pass")
	case always != nil && r != always && precedence(r.action.effect()) < precedence(events.Deny):
		l.warn(p, r, r.spec.line, LintUnreachable, "the rule never decides: rule %s denies every event", always.name)
	}
	l.route(p, r)
	l.approval(p, r)
	key := p.name
	if own := readsOwn(r.check); !own {
		key = fmt.Sprintf("%q", p.spec.Match) // anywhere else it would say the same
	}
	key += "\x00" + string(r.action) + "\x00" + strings.Join(strings.Fields(r.check.src), " ")
	if prev := l.seen[key]; prev != nil {
		l.warn(p, r, r.spec.line, LintDuplicate, "rule %s says the same", prev.id)
		return
	}
	l.seen[key] = r
}

// route warns of routes that have no effect on the events of a policy.
func (l *linter) route(p *policy, r *rule) {
	if r.spec.Route == nil {
		return
	}
	of := func(typ string) bool { return matchAny(p.spec.Match.Types, typ) }
	only := len(p.spec.Match.Types) == 1 && !isGlob(p.spec.Match.Types[0])
	to := r.spec.Route
	switch {
	case to.Tier != "" && !of(events.TypeBatchPublished):
		l.warn(p, r, r.spec.line, LintRoute, "nothing follows a route to a tier but %s, which the policy does not match", events.TypeBatchPublished)
	case (to.Workers != "" || to.Region != "") && only && of(events.TypeBatchPublished):
		l.warn(p, r, r.spec.line, LintRoute, "a batch is refused that is routed to workers or a region: route %s", events.TypeStageStarted)
	case (to.Tier != "" || to.Pipeline != "") && only && of(events.TypeStageStarted):
		l.warn(p, r, r.spec.line, LintRoute, "a stage is refused that is routed to a tier or a pipeline")
	}
}

// approval warns of approvals of events that are refused rather than wait: of a move,
// each batch and each attempt is an event of its own, and nobody could answer them all.
func (l *linter) approval(p *policy, r *rule) {
	if r.action != actionApproval {
		return
	}
	for _, typ := range []string{events.TypeTierMoveRequested, events.TypeTierMoved} {
		named := slices.ContainsFunc(p.spec.Match.Types, func(pattern string) bool {
			return strings.Trim(pattern, "*") != "" && matchAny([]string{pattern}, typ)
		})
		if named {
			l.warn(p, r, r.spec.line, LintApproval, "nobody is asked about %s, which is refused instead: each batch is an event of its own; match %s, which is one for a whole range", typ, events.TypeMigrationRequested)
			return
		}
	}
}

// readsOwn reports whether a program reads what belongs to its policy.
func readsOwn(prg *program) bool {
	for name := range prg.reads {
		if name == declParams || strings.HasPrefix(name, variablePrefix) {
			return true
		}
	}
	return false
}

// constant evaluates an expression that reads nothing: "true", "false" or "fails".
// Of any other it is "".
func constant(prg *program) string {
	if len(prg.reads) > 0 {
		return ""
	}
	v, _, err := prg.prg.ContextEval(context.Background(), cel.NoVars())
	switch {
	case err != nil:
		return "fails"
	case v == types.True:
		return "true"
	default:
		return "false"
	}
}
