package stokehold

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stokehold/stokehold/governance"
)

func policySet(t *testing.T, name string) *governance.PolicySet {
	t.Helper()
	text := fmt.Sprintf("apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: %s}\nspec:\n  match: {types: [run.started]}\n  rules: [{name: any, expression: 'true', message: never}]\n", name)
	set, err := governance.Load(governance.Options{}, governance.Source{Name: name, Data: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func TestEarlierPoliciesStayAcceptedAcrossRestarts(t *testing.T) {
	a := &App{cfg: Config{StateDir: t.TempDir()}}
	var digests []string
	for i := range governance.MaxAccepted + 5 {
		set := policySet(t, fmt.Sprintf("p%d", i))
		accept, err := a.acceptedPolicies(set, false)
		if err != nil {
			t.Fatal(err)
		}
		if want := digests[max(0, len(digests)-governance.MaxAccepted+1):]; !slices.Equal(accept, want) {
			t.Fatalf("start %d accepts %v, want %v", i, accept, want)
		}
		digests = append(digests, set.ShortDigest())
	}
	same := policySet(t, "p3")
	if accept, err := a.acceptedPolicies(same, false); err != nil || slices.Contains(accept, same.ShortDigest()) {
		t.Errorf("the current set is among the earlier ones: %v, %v", accept, err)
	}
}

func TestAnObserverLeavesTheListAlone(t *testing.T) {
	a := &App{cfg: Config{StateDir: filepath.Join(t.TempDir(), "none")}}
	if accept, err := a.acceptedPolicies(policySet(t, "p"), true); err != nil || len(accept) != 0 {
		t.Errorf("%v, %v", accept, err)
	}
	if _, err := a.keys(true); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(a.cfg.StateDir); !os.IsNotExist(err) {
		t.Errorf("the observer made %s: %v", a.cfg.StateDir, err)
	}
}
