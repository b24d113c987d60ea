package governance

import (
	"encoding/json"
	"fmt"

	"github.com/stokehold/stokehold/events"
)

// Language is the version of the policies' language. It is part of every digest:
// the same files have another digest under another version.
const Language = environmentVersion

// Canonical returns what the digest of the set covers, as JSON: the policies
// sorted by name with defaults filled in, the default action, the limits and the
// version of the language. Two sets decide alike if their canonical content is
// equal. For showing how sets differ; not for loading.
func (s *PolicySet) Canonical() ([]byte, error) {
	specs := make([]policySpec, len(s.policies))
	for i, p := range s.policies {
		specs[i] = p.spec
	}
	raw, err := json.Marshal(struct {
		Environment int           `json:"environment"`
		Default     events.Action `json:"default"`
		Limits      Limits        `json:"limits"`
		Policies    []policySpec  `json:"policies"`
	}{environmentVersion, s.def, s.limits, specs})
	if err != nil {
		return nil, fmt.Errorf("governance: canonical content of the policies: %w", err)
	}
	return raw, nil
}

// RuleRef names a rule.
type RuleRef struct{ Policy, Rule string }

// Rules returns the rules of all policies, by policy, in the order they are
// evaluated in.
func (s *PolicySet) Rules() []RuleRef {
	var out []RuleRef
	for _, p := range s.policies {
		for i := range p.rules {
			out = append(out, RuleRef{p.name, p.rules[i].name})
		}
	}
	return out
}
