package label

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stokehold/stokehold/events"
)

// Purpose is what data, or a model made of them, are to be at a place for. It says
// which labels matter.
type Purpose int

// The purposes.
const (
	Store Purpose = iota // kept there: residency, pii
	Serve                // put into service there: these and licence
)

// Violation is a label that a place does not satisfy.
type Violation struct {
	Kind   string // PII, Residency or Licence
	Labels []string
	Reason string // one line for a person
}

// Violations returns what of s forbids to bring the thing labelled to a place; nil if
// nothing does. What is not known of a place counts against it.
//
// Personal data need a place that says it takes their class; data with a residency a
// place whose region is known and among those allowed. For Serve, licence:none and
// licence:unknown allow no use, and a licence of which a part (between hyphens) is nc,
// noncommercial or research needs a place whose use is known to be noncommercial or
// research. What other licences ask for is for policies to say.
func (s Set) Violations(p events.Place, why Purpose) []Violation {
	var out []Violation
	if v, bad := s.residency(p); bad {
		out = append(out, v)
	}
	if why == Serve {
		if v, bad := s.licence(p); bad {
			out = append(out, v)
		}
	}
	if v, bad := s.personal(p); bad {
		out = append(out, v)
	}
	return out
}

func (s Set) residency(p events.Place) (Violation, bool) {
	if !s.restricted() {
		return Violation{}, false
	}
	v := Violation{Kind: Residency, Labels: s.named(Residency)}
	regions := s.Values(Residency)
	switch {
	case slices.Contains(s, Nowhere):
		v.Reason = "the data may lie in no region: what they were made of has none in common"
	case p.Region == "":
		v.Reason = fmt.Sprintf("the data may lie in %s only, and the region of the place is not known", strings.Join(regions, ", "))
	case !slices.Contains(regions, p.Region):
		v.Reason = fmt.Sprintf("the data may lie in %s only, not in %s", strings.Join(regions, ", "), p.Region)
	default:
		return v, false
	}
	return v, true
}

// noncommercial reports whether a use, or a part of a licence's name, is one that
// licences for no commercial use allow.
func noncommercial(use string) bool { return use == "noncommercial" || use == "research" }

func (s Set) licence(p events.Place) (Violation, bool) {
	v := Violation{Kind: Licence}
	var without, bound []string
	for _, name := range s.Values(Licence) {
		switch {
		case name == "none" || name == "unknown":
			without = append(without, name)
		case slices.ContainsFunc(strings.Split(name, "-"), restricts) && !noncommercial(p.Use):
			bound = append(bound, name)
		default:
			continue
		}
		v.Labels = append(v.Labels, Licence+":"+name)
	}
	switch {
	case len(without) > 0:
		v.Reason = "no licence of the data is known that allows any use"
	case len(bound) > 0 && p.Use == "":
		v.Reason = fmt.Sprintf("data under %s allow no commercial use, and what the place is used for is not known", strings.Join(bound, ", "))
	case len(bound) > 0:
		v.Reason = fmt.Sprintf("data under %s allow no commercial use, and the place is for %s use", strings.Join(bound, ", "), p.Use)
	default:
		return v, false
	}
	return v, true
}

func restricts(part string) bool { return part == "nc" || noncommercial(part) }

func (s Set) personal(p events.Place) (Violation, bool) {
	v := Violation{Kind: PII}
	for _, l := range s.named(PII) {
		class := strings.TrimPrefix(l, PII+":")
		if !slices.Contains(p.PII, "*") && (class == PII || !slices.Contains(p.PII, class)) {
			v.Labels = append(v.Labels, l)
		}
	}
	v.Reason = fmt.Sprintf("the place does not say that it takes personal data (%s)", strings.Join(v.Labels, ", "))
	return v, len(v.Labels) > 0
}

// named returns the labels of that name.
func (s Set) named(name string) []string {
	var out []string
	for _, l := range s {
		if nameOf(l) == name {
			out = append(out, l)
		}
	}
	return out
}

// CheckPlace reports what of a place cannot be compared with labels.
func CheckPlace(p events.Place) error {
	for _, c := range []struct{ what, label string }{{"region", Residency + ":" + p.Region}, {"use", "use:" + p.Use}} {
		if !strings.HasSuffix(c.label, ":") && events.CheckLabel(c.label) != nil {
			return fmt.Errorf("%s %.80q of a place: want a word of lower-case letters, digits, -, _ and ., as in labels", c.what, c.label[strings.Index(c.label, ":")+1:])
		}
	}
	if p.Region == "none" {
		return fmt.Errorf("region %q of a place stands for no region: name one, or leave it out", p.Region)
	}
	if len(p.PII) > MaxLabels {
		return fmt.Errorf("a place takes %d classes of personal data, at most %d: write * for all", len(p.PII), MaxLabels)
	}
	for _, class := range p.PII {
		if class != "*" && events.CheckLabel(PII+":"+class) != nil {
			return fmt.Errorf("class %.80q of personal data: want what follows pii: in a label, or *", class)
		}
	}
	return nil
}
