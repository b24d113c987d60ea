package label_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// words are few, so that sets meet.
var words = []string{
	"pii", "pii:contact", "pii:health", "residency:eu", "residency:us", "residency:ch", "residency:none",
	"licence:cc0-1.0", "licence:cc-by-4.0", "licence:cc-by-nc-4.0", "embargo", "team:late",
}

func sets() *rapid.Generator[label.Set] {
	return rapid.Custom(func(t *rapid.T) label.Set {
		return parse(t, rapid.SliceOfN(rapid.SampledFrom(words), 0, 8).Draw(t, "labels"))
	})
}

type failer interface{ Fatal(args ...any) }

func parse(t failer, labels []string) label.Set {
	s, err := label.Parse(labels)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func join(t failer, sets ...label.Set) label.Set {
	s, err := label.Join(sets...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestJoinIsASemilattice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := sets().Draw(t, "a"), sets().Draw(t, "b"), sets().Draw(t, "c")
		ab := join(t, a, b)
		equal := func(law string, x, y label.Set) {
			if !slices.Equal(x, y) {
				t.Fatalf("%s: %v, %v", law, x, y)
			}
		}
		equal("commutative", ab, join(t, b, a))
		equal("associative", join(t, ab, c), join(t, a, join(t, b, c)))
		equal("of many at once", join(t, ab, c), join(t, a, b, c))
		equal("idempotent", join(t, a, a), a)
		equal("identity", join(t, a, nil), a)
		if !ab.Covers(a) || !ab.Covers(b) {
			t.Fatalf("%v is weaker than %v or %v", ab, a, b)
		}
		if c.Covers(a) && c.Covers(b) && !c.Covers(ab) {
			t.Fatalf("%v is not the least above %v and %v: %v is above both", ab, a, b, c)
		}
		if a.Covers(b) != slices.Equal(join(t, a, b), a) {
			t.Fatalf("%v above %v: %t, against the join %v", a, b, a.Covers(b), ab)
		}
		if a.Covers(b) && b.Covers(a) && !slices.Equal(a, b) {
			t.Fatalf("%v and %v cover each other", a, b)
		}
	})
}

// What either input may not do, what is made of both may not do.
func TestJoinForbidsWhatItsInputsForbid(t *testing.T) {
	places := rapid.Custom(func(t *rapid.T) events.Place {
		return events.Place{
			Region: rapid.SampledFrom([]string{"", "eu", "us", "ch", "jp"}).Draw(t, "region"),
			Use:    rapid.SampledFrom([]string{"", "commercial", "research"}).Draw(t, "use"),
			PII:    rapid.SampledFrom([][]string{nil, {"*"}, {"contact"}, {"contact", "health"}}).Draw(t, "pii"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, p := sets().Draw(t, "a"), sets().Draw(t, "b"), places.Draw(t, "place")
		purpose := rapid.SampledFrom([]label.Purpose{label.Store, label.Serve}).Draw(t, "purpose")
		ab := join(t, a, b)
		for _, in := range []label.Set{a, b} {
			for _, v := range in.Violations(p, purpose) {
				if !slices.ContainsFunc(ab.Violations(p, purpose), func(w label.Violation) bool { return w.Kind == v.Kind }) {
					t.Fatalf("%v forbids %+v (%s), %v does not", in, p, v.Reason, ab)
				}
			}
		}
	})
}

func TestCanonicalForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sets().Draw(t, "set")
		back, err := label.ParseText(s.String())
		if err != nil || !slices.Equal(back, s) {
			t.Fatalf("%v read back: %v, %v", s, back, err)
		}
		shuffled := rapid.Permutation([]string(s)).Draw(t, "shuffled")
		if got := parse(t, append(shuffled, s...)); !slices.Equal(got, s) {
			t.Fatalf("%v parsed as %v, want %v", shuffled, got, s)
		}
	})
}

func TestResidencies(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"residency:eu,residency:us", "residency:eu", "residency:eu"},
		{"residency:eu", "residency:us", "residency:none"},
		{"residency:eu", "", "residency:eu"},
		{"residency:none", "residency:eu", "residency:none"},
		{"pii,residency:eu", "residency:ch", "pii,residency:none"},
	} {
		a, b := parse(t, strings.Split(c.a, ",")), label.Set(nil)
		if c.b != "" {
			b = parse(t, strings.Split(c.b, ","))
		}
		if got := join(t, a, b).String(); got != c.want {
			t.Errorf("%q and %q make %q, want %q", c.a, c.b, got, c.want)
		}
	}
}

func TestViolations(t *testing.T) {
	eu := events.Place{Region: "eu", Use: "commercial", PII: []string{"contact"}}
	for _, c := range []struct {
		name, labels string
		place        events.Place
		purpose      label.Purpose
		want         string // kinds and part of the reason
	}{
		{"nothing declared", "", events.Place{}, label.Serve, ""},
		{"the region allowed", "residency:eu,residency:us", eu, label.Store, ""},
		{"another region", "residency:us", eu, label.Store, "residency: the data may lie in us only, not in eu"},
		{"part of a name", "residency:eu", events.Place{Region: "eu-west-2"}, label.Store, "residency: the data may lie in eu only, not in eu-west-2"},
		{"an unknown region", "residency:us", events.Place{}, label.Store, "residency: the data may lie in us only, and the region of the place is not known"},
		{"nowhere", "residency:none", eu, label.Store, "residency: the data may lie in no region"},
		{"free licences", "licence:cc0-1.0,licence:cc-by-4.0", events.Place{}, label.Serve, ""},
		{"no commercial use", "licence:cc-by-nc-4.0", eu, label.Serve, "licence: data under cc-by-nc-4.0 allow no commercial use, and the place is for commercial use"},
		{"an unknown use", "licence:cc-by-nc-4.0", events.Place{}, label.Serve, "licence: data under cc-by-nc-4.0 allow no commercial use, and what"},
		{"research", "licence:cc-by-nc-4.0", events.Place{Use: "research"}, label.Serve, ""},
		{"keeping is no use", "licence:cc-by-nc-4.0,licence:none", eu, label.Store, ""},
		{"no licence", "licence:unknown", events.Place{Use: "research"}, label.Serve, "licence: no licence of the data is known"},
		{"a class taken", "pii:contact", eu, label.Store, ""},
		{"a class not taken", "pii:contact,pii:health", eu, label.Store, "pii: the place does not say that it takes personal data (pii:health)"},
		{"personal data of no class", "pii", eu, label.Store, "pii: the place does not say that it takes personal data (pii)"},
		{"all classes", "pii,pii:health", events.Place{PII: []string{"*"}}, label.Serve, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := label.ParseText(c.labels)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range s.Violations(c.place, c.purpose) {
				got = append(got, v.Kind+": "+v.Reason)
			}
			if all := strings.Join(got, "; "); c.want == "" && all != "" || !strings.HasPrefix(all, c.want) {
				t.Errorf("%q, want %q", all, c.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	many := make([]string, label.MaxLabels+1)
	for i := range many {
		many[i] = fmt.Sprintf("team:%d", i)
	}
	a, b := parse(t, many[:40]), parse(t, many[25:])
	if _, err := label.Join(a, b); !errors.Is(err, label.ErrTooMany) {
		t.Errorf("a join of %d labels: %v", len(many), err)
	}
	for _, c := range []struct {
		labels []string
		want   error
	}{
		{many, label.ErrTooMany},
		{[]string{"PII"}, label.ErrInvalid},
		{[]string{""}, label.ErrInvalid},
		{[]string{"a,b"}, label.ErrInvalid},
		{[]string{"residency"}, label.ErrInvalid},
		{[]string{"licence"}, label.ErrInvalid},
		{[]string{"residency:"}, label.ErrInvalid},
		{[]string{strings.Repeat("a", 65)}, label.ErrInvalid},
	} {
		_, err := label.Parse(c.labels)
		var typed *label.Error
		if !errors.Is(err, c.want) || !errors.As(err, &typed) || typed.Hint == "" {
			t.Errorf("%.80q: %v, want %v", c.labels, err, c.want)
		}
	}
}

func TestDeclassification(t *testing.T) {
	s := parse(t, []string{"pii", "pii:contact", "residency:eu", "residency:us", "licence:cc0-1.0"})
	for _, c := range []struct{ take, left string }{
		{"pii", "licence:cc0-1.0,residency:eu,residency:us"},
		{"pii:contact", "licence:cc0-1.0,pii,residency:eu,residency:us"},
		{"residency", "licence:cc0-1.0,pii,pii:contact"},
		{"embargo", s.String()},
	} {
		d := label.Declassification{Labels: []string{c.take}, Reason: "hashed"}
		if err := d.Check(); err != nil {
			t.Fatal(err)
		}
		left, removed := d.Of(s)
		if left.String() != c.left || join(t, left, removed).String() != s.String() {
			t.Errorf("without %s: %v, want %s; removed %v", c.take, left, c.left, removed)
		}
	}
	for _, d := range []label.Declassification{
		{Reason: "none named"}, {Labels: []string{"pii"}}, {Labels: []string{"pii"}, Reason: " "},
		{Labels: []string{"residency:eu"}, Reason: "x"}, {Labels: []string{"*"}, Reason: "x"},
		{Labels: []string{"pii"}, Reason: strings.Repeat("x", 513)},
	} {
		if err := d.Check(); err == nil {
			t.Errorf("%+v is taken", d)
		}
	}
}

func TestPlaces(t *testing.T) {
	for _, p := range []events.Place{{Region: "EU"}, {Region: "none"}, {Use: "any thing"}, {PII: []string{""}}, {PII: make([]string, 65)}} {
		if err := label.CheckPlace(p); err == nil {
			t.Errorf("%+v is taken", p)
		}
	}
	if err := label.CheckPlace(events.Place{Region: "eu-central-1", Use: "research", PII: []string{"*", "contact"}}); err != nil {
		t.Error(err)
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("pii,residency:eu")
	f.Add("residency:none,residency:eu,,")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := label.ParseText(text)
		if err != nil {
			return
		}
		if back, err := label.ParseText(s.String()); err != nil || !slices.Equal(back, s) {
			t.Errorf("%q: %v reads back as %v, %v", text, s, back, err)
		}
	})
}
