package flights_test

import (
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/policytest"
)

// TestPolicies: each rule has a case in which it holds and one in which it does not.
func TestPolicies(t *testing.T) {
	types, err := events.NewRegistry(flights.EventTypes()...)
	if err != nil {
		t.Fatal(err)
	}
	policytest.Check(t, governance.Options{Types: types}, 1, "policies")
}
