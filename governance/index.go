package governance

// policyIndex finds the policies that may match an event, without looking at each
// of the thousands that one type can have. Immutable once built.
type policyIndex struct {
	all  []*policy // by name
	by   [attributesOfMatch]map[string][]int32
	rest []int32 // positions in all of policies that no literal narrows down
	flat bool    // too few for by and rest to be worth it
}

// The attributes that match lists select by, in the order in which an index
// prefers them: what most tells policies apart comes first.
const (
	byPipeline = iota
	bySubject
	byStage
	attributesOfMatch
)

// minIndexed is how many policies are looked at one by one.
const minIndexed = 8

func newPolicyIndex(policies []*policy) policyIndex {
	x := policyIndex{all: policies, flat: len(policies) < minIndexed}
	if x.flat {
		return x
	}
	for i, p := range policies {
		m := &p.spec.Match
		attribute, literals := -1, []string(nil)
		for k, patterns := range [attributesOfMatch][]string{byPipeline: m.Pipelines, bySubject: m.Subjects, byStage: m.Stages} {
			if allLiteral(patterns) {
				attribute, literals = k, patterns
				break
			}
		}
		if attribute < 0 {
			x.rest = append(x.rest, int32(i))
			continue
		}
		if x.by[attribute] == nil {
			x.by[attribute] = map[string][]int32{}
		}
		for _, l := range literals {
			at := x.by[attribute][l]
			if n := len(at); n == 0 || at[n-1] != int32(i) { // a list may name one twice
				x.by[attribute][l] = append(at, int32(i))
			}
		}
	}
	return x
}

func allLiteral(patterns []string) bool {
	for _, p := range patterns {
		if isGlob(p) {
			return false
		}
	}
	return len(patterns) > 0
}

// candidates are policies to be asked whether they match, in the order of their
// names.
type candidates struct {
	all   []*policy
	next  int                            // of a flat index
	heads [attributesOfMatch + 1][]int32 // otherwise: what is left of each list
}

// candidates returns the policies that may match an event.
func (x *policyIndex) candidates(ev *eventVal) candidates {
	c := candidates{all: x.all}
	if x.flat {
		return c
	}
	c.next = -1
	c.heads[attributesOfMatch] = x.rest
	for k, value := range [attributesOfMatch]string{byPipeline: ev.ext.pipeline, bySubject: ev.ctx.GetSubject(), byStage: ev.ext.stage} {
		if x.by[k] != nil {
			c.heads[k] = x.by[k][value]
		}
	}
	return c
}

// take returns the next candidate; nil after the last.
func (c *candidates) take() *policy {
	if c.next >= 0 {
		if c.next >= len(c.all) {
			return nil
		}
		c.next++
		return c.all[c.next-1]
	}
	least := -1
	for k, h := range c.heads {
		if len(h) > 0 && (least < 0 || h[0] < c.heads[least][0]) {
			least = k
		}
	}
	if least < 0 {
		return nil
	}
	p := c.all[c.heads[least][0]]
	c.heads[least] = c.heads[least][1:]
	return p
}

// typeIndex finds the policies that name an event type, literally or by a pattern.
type typeIndex struct {
	literal map[string][]int32 // positions of policies with only literal types
	rest    []int32            // of the others
}

func newTypeIndex(policies []*policy) typeIndex {
	x := typeIndex{literal: map[string][]int32{}}
	for i, p := range policies {
		if !allLiteral(p.spec.Match.Types) {
			x.rest = append(x.rest, int32(i))
			continue
		}
		for _, t := range p.spec.Match.Types {
			if at := x.literal[t]; len(at) == 0 || at[len(at)-1] != int32(i) {
				x.literal[t] = append(at, int32(i))
			}
		}
	}
	return x
}

// of calls f with the policies that match a type, in the order of their names.
func (x *typeIndex) of(policies []*policy, typ string, f func(*policy)) {
	literal, rest := x.literal[typ], x.rest
	for len(literal) > 0 || len(rest) > 0 {
		if len(rest) == 0 || len(literal) > 0 && literal[0] < rest[0] {
			f(policies[literal[0]])
			literal = literal[1:]
			continue
		}
		if p := policies[rest[0]]; matchAny(p.spec.Match.Types, typ) {
			f(p)
		}
		rest = rest[1:]
	}
}
