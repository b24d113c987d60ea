package approval

import (
	"errors"
	"testing"
)

// Whatever a document of actors holds, it is refused with ErrConfig or all of its
// names can be looked up and are tokens of NATS subjects that lead back to them.
func FuzzDirectory(f *testing.F) {
	f.Add([]byte("apiVersion: stokehold.dev/v1\nkind: Actors\nactors:\n  - {name: ann@example.org, roles: [release], nats: [U]}\n  - {name: bob}"))
	f.Add([]byte("apiVersion: stokehold.dev/v1\nkind: Actors\nactors: [{name: '=62ob'}, {name: &a x}, {name: *a}]"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseDirectory(raw)
		if err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatalf("%v", err)
			}
			return
		}
		seen := map[string]bool{}
		for name := range d.byName {
			token := actorToken(name)
			if seen[token] || actorOf(token) != name {
				t.Fatalf("%q has the token %q", name, token)
			}
			seen[token] = true
			for i := range len(token) {
				if c := token[i]; c == '.' || c == '*' || c == '>' || c <= ' ' {
					t.Fatalf("token %q", token)
				}
			}
			if a, ok := d.OfNATS(name); !ok || a.Name != name {
				t.Fatalf("the credentials %q are %v's", name, a)
			}
		}
	})
}
