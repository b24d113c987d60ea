package governance_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/governance"
)

func TestWhen(t *testing.T) {
	ctx := context.Background()
	ev := newEvent(t, "model.promotion.requested", promo())
	for expr, want := range map[string]bool{
		"data.challenger.logloss < 0.41 && event.subject == 'late'": true,
		"data.champion.rows > 6000":                                 false,
		"event.time.getFullYear() == 2026":                          true,
	} {
		c, err := governance.CompileWhen(expr, "model.promotion.requested", testTypes)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := c.Match(ctx, ev); err != nil || got != want {
			t.Errorf("%s = %v, %v", expr, got, err)
		}
	}
}

func TestConditionErrors(t *testing.T) {
	ctx := context.Background()
	for expr, want := range map[string]string{
		"data.chalenger.rows > 1":                `did you mean "challenger"`,
		"now > event.time":                       "undeclared reference to 'now'",
		"point == 'publish'":                     "undeclared reference to 'point'",
		"data.model":                             "gives string, not bool",
		"data.model ==":                          "Syntax error",
		"data.model.matches(string(data.extra))": "must be a literal",
	} {
		_, err := governance.CompileWhen(expr, "model.promotion.requested", testTypes)
		var pe *governance.PolicyError
		if !errors.As(err, &pe) || pe.Line != 1 || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", expr, err)
		}
	}
	if _, err := governance.CompileWhen("true", "model.promotd", testTypes); !errors.Is(err, governance.ErrPolicy) {
		t.Error(err)
	}
	for expr, want := range map[string]error{
		"data.missing == 1":                      governance.ErrMissingField,
		"data.xs.all(a, data.xs.all(b, a == b))": governance.ErrLimit,
		"1 / int(data.xs[0]) == 1":               governance.ErrEval,
	} {
		c, err := governance.CompileCondition(expr)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Match(ctx, newEvent(t, "a.b", hugeData()))
		var ee *governance.EvalError
		if !errors.Is(err, want) || !errors.As(err, &ee) || ee.Expression != expr {
			t.Errorf("%s: %v, want %v", expr, err, want)
		}
	}
	c, err := governance.CompileCondition("data.a == 1")
	if err != nil {
		t.Fatal(err)
	}
	ev := newEvent(t, "a.b", nil)
	ev.DataEncoded = []byte("{")
	if _, err := c.Match(ctx, ev); !errors.Is(err, governance.ErrData) {
		t.Error(err)
	}
	if _, err := c.Match(ctx, nil); !errors.Is(err, governance.ErrData) {
		t.Error(err)
	}
}

func TestConditionVariables(t *testing.T) {
	ctx := context.Background()
	c, err := governance.CompileCondition("challenger.logloss < champion.logloss && limit > 2 && note.text == 'x'",
		governance.Var{Name: "challenger", Zero: metrics{}}, governance.Var{Name: "champion", Zero: metrics{}},
		governance.Var{Name: "limit", Zero: 0}, governance.Var{Name: "note"})
	if err != nil {
		t.Fatal(err)
	}
	ev := newEvent(t, "a.b", nil)
	values := map[string]any{"challenger": metrics{LogLoss: 1}, "champion": &metrics{LogLoss: 2}, "limit": 3, "note": map[string]string{"text": "x"}}
	if ok, err := c.Eval(ctx, ev, values); err != nil || !ok {
		t.Error(ok, err)
	}
	delete(values, "champion")
	if _, err := c.Eval(ctx, ev, values); !errors.Is(err, governance.ErrMissingField) {
		t.Error(err)
	}
	if _, err := governance.CompileCondition("limit.x == 1", governance.Var{Name: "limit", Zero: metrics{}}); err == nil || !strings.Contains(err.Error(), "undefined field") {
		t.Error(err)
	}
	for _, bad := range []string{"event", "data", "", "A", "a-b"} {
		if _, err := governance.CompileCondition("true", governance.Var{Name: bad}); !errors.Is(err, governance.ErrPolicy) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
