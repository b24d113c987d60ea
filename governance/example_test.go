package governance_test

import (
	"context"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

const examplePolicy = `
apiVersion: stokehold.dev/v1
kind: Policy
metadata:
  name: promotion-gate
spec:
  match:
    types: [model.promotion.requested]
  variables:
    - name: gain
      expression: data.champion.logloss - data.challenger.logloss
  rules:
    - name: better
      expression: variables.gain >= 0.005
      messageExpression: "'log loss improves by %.4f; 0.0050 is needed'.format([variables.gain])"
      reason: NotBetter
`

// An Engine judges an event on publish, stamps it, and verifies it on receive.
func ExampleEngine() {
	type metrics struct {
		LogLoss float64 `json:"logloss"`
	}
	type request struct {
		Challenger metrics `json:"challenger"`
		Champion   metrics `json:"champion"`
	}
	types := registry{events.TypePromotionRequested: {Name: events.TypePromotionRequested, Data: request{}}}
	set, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "gate.yaml", Data: []byte(examplePolicy)})
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
	log := &governance.MemoryLog{}
	engine, err := governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: keys})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx := context.Background()
	for _, challenger := range []float64{0.44, 0.449} {
		ev, err := events.New(events.TypePromotionRequested, "flights", "late", fmt.Sprint(challenger), time.Now(),
			request{Challenger: metrics{challenger}, Champion: metrics{0.45}})
		if err != nil {
			fmt.Println(err)
			return
		}
		published, err := engine.Judge(ctx, events.OnPublish, []*events.Event{&ev})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("publish: %s %q %q\n", published[0].Action, published[0].Policy, published[0].Reason)
		ev.DataEncoded = []byte(`{"challenger":{"logloss":0},"champion":{"logloss":9}}`)
		received, err := engine.Judge(ctx, events.OnReceive, []*events.Event{&ev})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("tampered:", received[0].Action)
	}
	counts, err := log.Count(ctx, time.Time{})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("judged on publish:", counts.Judged(events.OnPublish), "denied:", counts.Denied(events.OnPublish))
	// Output:
	// publish: allow "" ""
	// tampered: quarantine
	// publish: deny "promotion-gate/better" "log loss improves by 0.0010; 0.0050 is needed"
	// tampered: quarantine
	// judged on publish: 2 denied: 1
}

// A fault names the file, the place and what was probably meant.
func ExampleLoad() {
	types := registry{"drift.detected": {Name: "drift.detected", Data: struct {
		Score float64 `json:"score"`
	}{}}}
	_, err := governance.Load(governance.Options{Types: types}, governance.Source{Name: "drift.yaml", Data: []byte(`
apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: drift}
spec:
  match: {types: [drift.detected]}
  rules:
    - name: strong
      expression: data.scor > 0.2
`)})
	fmt.Println(err)
	// Output:
	// governance: 1 fault(s) in policies; nothing was loaded
	//   drift.yaml:9:23: policy drift: rule strong: spec.rules[0].expression: undefined field 'scor' [expression 1:5] (did you mean "score"?)
}

// A trigger's condition is checked against the type of the event's data.
func ExampleCompileWhen() {
	types := registry{"drift.detected": {Name: "drift.detected", Data: struct {
		Score float64 `json:"score"`
	}{}}}
	when, err := governance.CompileWhen("data.score > 0.2 && event.subject != 'shadow'", "drift.detected", types)
	if err != nil {
		fmt.Println(err)
		return
	}
	ev, err := events.New("drift.detected", "flights", "late", "week-7", time.Now(), map[string]float64{"score": 0.3})
	if err != nil {
		fmt.Println(err)
		return
	}
	ok, err := when.Match(context.Background(), &ev)
	fmt.Println(ok, err)
	// Output: true <nil>
}

// A gate of one's own may compare values that are not in the event.
func ExampleCompileCondition() {
	type metrics struct {
		AUC float64 `json:"auc"`
	}
	better, err := governance.CompileCondition("challenger.auc > champion.auc + 0.01",
		governance.Var{Name: "challenger", Zero: metrics{}}, governance.Var{Name: "champion", Zero: metrics{}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ev, err := events.New("model.promotion.requested", "flights", "late", "1", time.Now(), nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	ok, err := better.Eval(context.Background(), &ev, map[string]any{"challenger": metrics{0.72}, "champion": metrics{0.70}})
	fmt.Println(ok, err)
	// Output: true <nil>
}
