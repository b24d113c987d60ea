package governance_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

func TestText(t *testing.T) {
	ev, err := events.New("data.arrived", "/test", "flights", "id-1", time.Unix(0, 0), map[string]any{"airport": "JFK", "week": 7, "list": []int{1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, expr, want string
		kind             error // of evaluation
		fault            string
	}{
		{name: "field of the data", expr: "data.airport", want: "JFK"},
		{name: "attribute", expr: "event.subject + '/' + data.airport", want: "flights/JFK"},
		{name: "number turned to text", expr: "string(int(data.week) % 2) + 'x'", want: "1x"},
		{name: "missing field", expr: "data.city", kind: governance.ErrMissingField},
		{name: "number", expr: "data.week", want: "7"},
		{name: "no string when evaluated", expr: "data.list", kind: governance.ErrEval},
		{name: "no string when compiled", expr: "[1]", fault: "string"},
		{name: "syntax", expr: "data.", fault: "Syntax error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := governance.CompileText(c.expr)
			if c.fault != "" {
				if !errors.Is(err, governance.ErrPolicy) || !strings.Contains(err.Error(), c.fault) {
					t.Fatalf("compile: %v, want a fault with %q", err, c.fault)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := text.Eval(t.Context(), &ev)
			if got != c.want || !errors.Is(err, c.kind) {
				t.Fatalf("got %q, %v; want %q, %v", got, err, c.want, c.kind)
			}
		})
	}
}
