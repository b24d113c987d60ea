package governance_test

import (
	"context"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// shelf is where the people of an example put their approvals.
type shelf map[string]governance.Grant

func (s shelf) Approved(_ context.Context, id string) (governance.Grant, error) {
	if g, ok := s[id]; ok {
		return g, nil
	}
	return governance.Grant{}, governance.ErrNotApproved
}

// An event that needs approval passes once enough people have given it, the one
// who asks not among them.
func ExampleApprovals() {
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "four-eyes.yaml", Data: []byte(`
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: four-eyes}
spec:
  match: {types: [model.promotion.requested]}
  rules:
    - name: approved
      expression: "false"
      message: goes to production
      action: requireApproval
      approval: {roles: [ml-lead], quorum: 1, expires: 24h}
`)})
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := governance.NewKey("k1")
	if err != nil {
		fmt.Println(err)
		return
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		fmt.Println(err)
		return
	}
	approvals := shelf{}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: keys, Approvals: approvals})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, who := range []string{"", "ann", "bob"} {
		ev, err := events.New(events.TypePromotionRequested, "flights", "late", "1", time.Now(), map[string]string{"model": "late"})
		if err != nil {
			fmt.Println(err)
			return
		}
		ev.SetExtension(events.ExtActor, "ann")
		vs, err := engine.Judge(context.Background(), events.OnPublish, []*events.Event{&ev})
		if err != nil {
			fmt.Println(err)
			return
		}
		if need := vs[0].Approval; need != nil {
			approvals[need.ID] = governance.Grant{ID: need.ID, By: []string{"ann"}, At: time.Now()}
			if who == "ann" {
				approvals[need.ID] = governance.Grant{ID: need.ID, By: []string{"bob"}, At: time.Now()}
			}
		}
		fmt.Println(vs[0].Action, vs[0].Reason)
	}
	// Output:
	// require_approval goes to production (not approved yet)
	// require_approval goes to production (too few have approved, the requester apart)
	// allow
}

// What a redaction takes out is gone before the event is stamped.
func ExampleEngine_redact() {
	set, err := governance.Load(governance.Options{}, governance.Source{Name: "pii.yaml", Data: []byte(`
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: pii}
spec:
  rules:
    - name: no-address
      expression: "!has(data.email)"
      message: carries an address
      action: redact
      redact: {drop: [data.email], mask: [data.name]}
`)})
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := governance.NewKey("k1")
	if err != nil {
		fmt.Println(err)
		return
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		fmt.Println(err)
		return
	}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: &governance.MemoryLog{}, Keys: keys})
	if err != nil {
		fmt.Println(err)
		return
	}
	ev, err := events.New("customer.seen", "shop", "ann", "1", time.Now(), map[string]any{"email": "ann@example.org", "name": "Ann", "visits": 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	vs, err := engine.Judge(context.Background(), events.OnPublish, []*events.Event{&ev})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(vs[0].Action, vs[0].Reason)
	fmt.Println(string(ev.Data()))
	// Output:
	// redact carries an address
	// {"name":"[redacted]","visits":3}
}
