package governance_test

import (
	"fmt"

	"github.com/stokehold/stokehold/governance"
)

// Two sets are compared by what they say, not by how they are written.
func ExampleDiff() {
	load := func(margin string) *governance.PolicySet {
		set, err := governance.Load(governance.Options{}, governance.Source{Name: "gate.yaml", Data: []byte(`apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: gate}
spec:
  rules: [{name: better, expression: "data.gain > ` + margin + `", message: not better}]
`)})
		if err != nil {
			fmt.Println(err)
		}
		return set
	}
	changes, err := governance.Diff(load("0.005"), load("0.010"))
	if err != nil {
		fmt.Println(err)
	}
	for _, c := range changes {
		fmt.Printf("%s: policy %s, %s, %s: %s -> %s\n", c.Kind, c.Policy, c.Part, c.Field, c.Before, c.After)
	}
	// Output:
	// changed: policy gate, rule better, expression: "data.gain > 0.005" -> "data.gain > 0.010"
}
