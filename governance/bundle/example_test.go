package bundle_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/bundle"
)

// A set of policies is signed by one and taken by all who trust the key.
func Example() {
	key, err := bundle.NewSigningKey("alice")
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := bundle.Create(bundle.Draft{
		Position: bundle.Position{Version: 7}, Author: "alice", Created: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC),
		Sources: []governance.Source{{Name: "rows.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: rows}
spec:
  match: {types: [batch.published]}
  rules: [{name: some, expression: data.rows > 0.0, message: an empty batch}]
`)}},
	}, key)
	if err != nil {
		fmt.Println(err)
		return
	}
	trust, err := bundle.NewTrust(1, key.Public())
	if err != nil {
		fmt.Println(err)
		return
	}
	opened, err := bundle.Open(b.Bytes(), trust)
	if err != nil {
		fmt.Println(err)
		return
	}
	set, err := opened.Load(context.Background(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	policies, rules := set.Len()
	fmt.Printf("version %s by %s: %d policy, %d rule\n", opened.Position, opened.Author, policies, rules)

	altered := strings.Replace(string(b.Bytes()), "version 7", "version 8", 1)
	_, err = bundle.Open([]byte(altered), trust)
	fmt.Println(err != nil)
	// Output:
	// version 7 by alice: 1 policy, 1 rule
	// true
}
