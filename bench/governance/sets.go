package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

const eventType = "bench.promotion"

// policyFile is the set of policies in the engine's form. With pipelines a policy
// that does not match is told by its pipeline; otherwise most are of types of
// their own.
func policyFile(n int, ofOneType bool) []governance.Source {
	var srcs []governance.Source
	var b strings.Builder
	for i := range n {
		typ := typeOfPolicy(i)
		if !ofOneType && !matches(i) {
			typ = fmt.Sprintf("other.type%d", i)
		}
		if n <= 20 {
			typ = typeOfPolicy(i)
		}
		expr := ruleCEL(i)
		if typ != eventType {
			expr = "event.subject != ''"
		}
		fmt.Fprintf(&b, "---\napiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: policy-%d}\nspec:\n  match: {types: [%s], pipelines: [%s], points: [publish]}\n"+
			"  rules:\n    - name: rule\n      expression: |\n        %s\n      message: policy %d\n", i, typ, pipelineOfPolicy(i), expr, i)
		if b.Len() > governance.MaxFileBytes/2 {
			srcs = append(srcs, governance.Source{Name: "bench.yaml", Data: []byte(b.String())})
			b.Reset()
		}
	}
	return append(srcs, governance.Source{Name: "bench.yaml", Data: []byte(b.String())})
}

// typesOfData gives every type the same data.
type typesOfData struct{}

func (typesOfData) Lookup(name string) (events.Type, bool) {
	return events.Type{Name: name, Data: Promotion{}}, true
}

// discard is a decision log that keeps nothing: what a durable one costs is
// measured by itself.
type discard struct{}

func (discard) Append(context.Context, []governance.Decision) error { return nil }

func newEngine(log governance.DecisionLog, srcs ...governance.Source) (*governance.Engine, error) {
	set, err := governance.Load(governance.Options{Types: typesOfData{}}, srcs...)
	if err != nil {
		return nil, err
	}
	key, err := governance.NewKey("bench")
	if err != nil {
		return nil, err
	}
	keys, err := governance.NewKeyRing(key)
	if err != nil {
		return nil, err
	}
	return governance.NewEngine(governance.Config{Policies: set, Log: log, Keys: keys})
}

func newEvent(id string) (*events.Event, error) {
	ev, err := events.New(eventType, "stokehold/flights", "late", id, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), thePromotion())
	if err != nil {
		return nil, err
	}
	ev.SetExtension(events.ExtPipeline, "flights-train")
	return &ev, nil
}

// judging judges the events over and over, as if they had not been.
func judging(e *governance.Engine, evs []*events.Event) func(n int) error {
	return func(n int) error {
		ctx := context.Background()
		for range n {
			vs, err := e.Judge(ctx, events.OnPublish, evs)
			if err != nil {
				return err
			}
			for i, v := range vs {
				if v.Action != events.Allow {
					return fmt.Errorf("the event is not allowed: %+v", v)
				}
				delete(evs[i].Context.(*event.EventContextV1).Extensions, governance.ExtStamp)
			}
		}
		return nil
	}
}

func someEvents(n int) (evs []*events.Event, err error) {
	for i := range n {
		ev, err := newEvent(fmt.Sprintf("ev-%d", i))
		if err != nil {
			return nil, err
		}
		evs = append(evs, ev)
	}
	return evs, nil
}

func setContenders() (cs []contender, err error) {
	one, err := someEvents(1)
	if err != nil {
		return nil, err
	}
	many, err := someEvents(100)
	if err != nil {
		return nil, err
	}
	plain := governance.Source{Name: "bench.yaml", Data: []byte("apiVersion: stokehold.dev/v1\nkind: Policy\nmetadata: {name: plain}\nspec:\n  rules: [{name: rule, expression: event.subject != ''}]\n")}
	for _, c := range []struct {
		name string
		srcs []governance.Source
		evs  []*events.Event
	}{
		{judgeOne, []governance.Source{plain}, one},
		{judge20, policyFile(20, true), one},
		{judge10k, policyFile(10_000, false), one},
		{judge10kType, policyFile(10_000, true), one},
		{judgeBatch, policyFile(20, true), many},
	} {
		e, err := newEngine(discard{}, c.srcs...)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		cs = append(cs, contender{name: c.name, f: judging(e, c.evs), unit: float64(len(c.evs))})
	}
	alone, err := decideAlone()
	if err != nil {
		return nil, err
	}
	opa, err := opaSet()
	return append(append(cs, alone), opa...), err
}

// decideAlone comes to a decision from an event and its bytes, and to nothing else:
// what OPA does too.
func decideAlone() (contender, error) {
	set, err := governance.Load(governance.Options{Types: typesOfData{}}, policyFile(20, true)...)
	if err != nil {
		return contender{}, err
	}
	e, err := governance.NewEvaluator(set)
	if err != nil {
		return contender{}, err
	}
	ev, err := newEvent("ev-0")
	if err != nil {
		return contender{}, err
	}
	ctx := context.Background()
	return contender{name: decide20, f: repeat(func() bool {
		d, err := e.Decide(ctx, events.OnPublish, ev.Time(), ev)
		return err == nil && d.Action == events.Allow
	})}, nil
}

// opaSet evaluates the same 20 policies, whose rules OPA has specialised before: on
// input that it has parsed before, on Go maps, and on an event's attributes and the
// bytes of its data, as a bus has them.
func opaSet() ([]contender, error) {
	ctx := context.Background()
	q, err := rego.New(rego.Query("data.bench.deny"), rego.Module("bench.rego", regoPolicies(20))).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	ev, err := newEvent("ev-0")
	if err != nil {
		return nil, err
	}
	attributes := func() map[string]any {
		return map[string]any{"type": ev.Type(), "pipeline": ev.Extensions()[events.ExtPipeline], "subject": ev.Subject()}
	}
	input := map[string]any{"event": attributes(), "data": asMaps(thePromotion())}
	parsed, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, err
	}
	allows := func(o rego.EvalOption) bool {
		rs, err := q.Eval(ctx, o)
		return err == nil && deniedNothing(rs)
	}
	return []contender{
		{name: opa20Parsed, f: repeat(func() bool { return allows(rego.EvalParsedInput(parsed)) })},
		{name: opa20, f: repeat(func() bool { return allows(rego.EvalInput(input)) })},
		{name: opa20JSON, f: repeat(func() bool {
			var data any
			if err := json.Unmarshal(ev.Data(), &data); err != nil {
				return false
			}
			return allows(rego.EvalInput(map[string]any{"event": attributes(), "data": data}))
		})},
		{name: opa20Value, f: repeat(func() bool {
			data, err := ast.ValueFromReader(bytes.NewReader(ev.Data()))
			if err != nil {
				return false
			}
			a, err := ast.InterfaceToValue(attributes())
			if err != nil {
				return false
			}
			return allows(rego.EvalParsedInput(ast.NewObject(ast.Item(ast.StringTerm("event"), ast.NewTerm(a)), ast.Item(ast.StringTerm("data"), ast.NewTerm(data)))))
		})},
	}, nil
}

// judgeLatency is the median over rounds of the median time of single Judge calls,
// in nanoseconds, without what looking at the clock takes.
func judgeLatency(rounds int) (float64, error) {
	evs, err := someEvents(1)
	if err != nil {
		return 0, err
	}
	e, err := newEngine(discard{}, policyFile(20, true)...)
	if err != nil {
		return 0, err
	}
	judge := judging(e, evs)
	var medians []float64
	for range rounds {
		took := make([]float64, 2000)
		for i := range took {
			start := time.Now()
			if err := judge(1); err != nil {
				return 0, err
			}
			took[i] = float64(time.Since(start).Nanoseconds())
		}
		medians = append(medians, median(took))
	}
	clock := make([]float64, 2000)
	for i := range clock {
		start := time.Now()
		clock[i] = float64(time.Since(start).Nanoseconds())
	}
	return median(medians) - median(clock), nil
}
