package governance

import "slices"

// Facts returns the variables of Facts that the policies read, in the order in
// which docs/GOVERNANCE.md lists them.
func (s *PolicySet) Facts() []string {
	var read [facts]bool
	for _, p := range s.policies {
		for i, found := range p.readsFacts() {
			read[i] = read[i] || found
		}
	}
	return named(read)
}

func (p *policy) readsFacts() (read [facts]bool) {
	names := map[string]bool{}
	for i := range p.rules {
		for _, prg := range []*program{p.rules[i].check, p.rules[i].dynamic} {
			if prg != nil {
				collect(names, p, prg)
			}
		}
	}
	for name := range names {
		if i := factIndex(name); i >= 0 {
			read[i] = true
		}
	}
	return read
}

func named(read [facts]bool) []string {
	var out []string
	for i, name := range factNames {
		if read[i] {
			out = append(out, name)
		}
	}
	return slices.Clip(out)
}
