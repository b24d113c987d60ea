package governance_test

import (
	"strings"
	"testing"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

const paramPolicy = `apiVersion: stokehold.dev/v1
kind: Policy
metadata: {name: gate}
spec:
  params:
    margin: {type: double, default: 1, description: of the log loss}
    rows: {type: int, default: 10}
    regions: {type: list(string), default: [eu]}
    limits: {type: map(double), default: {auc: 0.5}}
    wait: {type: duration, default: 90m}
    since: {type: timestamp, default: "2026-01-01T00:00:00Z"}
    strict: {type: bool, default: true}
    needed: {type: string}
  rules:
    - name: r
      expression: |-
        EXPR
`

func bindingYAML(name, policy, params string) string {
	return "apiVersion: stokehold.dev/v1\nkind: Binding\nmetadata: {name: " + name + "}\nspec:\n  policy: " + policy + "\n  params: " + params + "\n"
}

func TestParameters(t *testing.T) {
	defaults := `params.margin == 1.0 && params.rows == 10 && params.regions == ['eu'] && params.limits.auc == 0.5 && params.wait == duration('90m') && params.since < now && params.strict`
	for _, c := range []struct{ expr, binding, want string }{
		{defaults, "", ""},
		{`params.margin == 0.25 && params.regions.size() == 2 && params.rows == 10 && params.needed == 'x'`, "{margin: 0.25, regions: [eu, us], needed: x}", ""},
		{`params.limits == {'f1': 0.5} && !params.strict && params.wait == days(1)`, "{limits: {f1: 0.5}, strict: false, wait: 24h}", ""},
		{`params.needed == 'x'`, "", `missing field: the parameter "needed" has no value; give it a default, or a value in a Binding document`},
		{`params.?needed.orValue('none') == 'none' && !has(params.needed)`, "", ""},
		{`params.regions == []`, "{regions: []}", ""},
	} {
		files := []string{strings.Replace(paramPolicy, "EXPR", c.expr, 1)}
		if c.binding != "" {
			files = append([]string{bindingYAML("prod", "gate", c.binding)}, files...) // wherever it stands
		}
		e := engine(t, load(t, governance.Options{}, files...), discard)
		if v := judge(t, e, events.OnPublish, newEvent(t, "batch.published", nil))[0]; v.Action.Permits() != (c.want == "") || v.Reason != c.want {
			t.Errorf("%s with %s: %+v, want %q", c.expr, c.binding, v, c.want)
		}
	}
}

func TestDigestCoversParameters(t *testing.T) {
	file := strings.Replace(paramPolicy, "EXPR", "params.margin > 0.0", 1)
	base := load(t, governance.Options{}, file).Digest()
	if load(t, governance.Options{}, file, bindingYAML("b", "gate", "{margin: 2}")).Digest() == base {
		t.Error("a bound value leaves the digest")
	}
	if load(t, governance.Options{}, file, bindingYAML("b", "gate", "{margin: 1}")).Digest() != base {
		t.Error("a value that is the default changes the digest")
	}
}

func TestParameterFaults(t *testing.T) {
	file := strings.Replace(paramPolicy, "EXPR", "params.margin > 0.0", 1)
	for name, c := range map[string]struct{ file, want string }{
		"a binding of no policy":      {bindingYAML("b", "gaet", "{}") + "---\n" + file, `spec.policy: no policy "gaet" is loaded (did you mean "gate"?)`},
		"two bindings":                {file + "---\n" + bindingYAML("b", "gate", "{}") + "---\n" + bindingYAML("c", "gate", "{}"), `policy "gate" is already bound by "b" at test.yaml:19`},
		"an unknown parameter":        {file + "---\n" + bindingYAML("b", "gate", "{marigin: 1}"), `test.yaml:24:12: spec.params.marigin: policy "gate" has no such parameter (did you mean "margin"?)`},
		"a parameter twice":           {file + "---\n" + bindingYAML("b", "gate", "{margin: 1, margin: 2}"), `spec.params.margin: duplicate field`},
		"a value of another type":     {file + "---\n" + bindingYAML("b", "gate", "{margin: high}"), `spec.params.margin: must be double`},
		"NaN":                         {file + "---\n" + bindingYAML("b", "gate", "{margin: .nan}"), `spec.params.margin: must be double`},
		"infinity":                    {file + "---\n" + bindingYAML("b", "gate", "{margin: .inf}"), `must be double`},
		"a fraction of a row":         {file + "---\n" + bindingYAML("b", "gate", "{rows: 1.5}"), `spec.params.rows: must be int`},
		"a region that is a number":   {file + "---\n" + bindingYAML("b", "gate", "{regions: [eu, 7]}"), `spec.params.regions[1]: must be string`},
		"a list that is a text":       {file + "---\n" + bindingYAML("b", "gate", "{regions: eu}"), `spec.params.regions: must be list(string)`},
		"a map key twice":             {file + "---\n" + bindingYAML("b", "gate", "{limits: {a: 1, a: 2}}"), `spec.params.limits.a: duplicate field`},
		"a wait without a unit":       {file + "---\n" + bindingYAML("b", "gate", "{wait: 5}"), `spec.params.wait: must be google.protobuf.Duration`},
		"an alias":                    {file + "---\n" + bindingYAML("b", "gate", "{margin: &a 1, rows: *a}"), `anchors, aliases`},
		"an unknown field":            {file + "---\n" + bindingYAML("b", "gate", "{}") + "  rules: []\n", `spec.rules: unknown field`},
		"a binding without a policy":  {file + "---\n" + strings.Replace(bindingYAML("b", "x", "{}"), "  policy: x\n", "", 1), `spec.policy: required field is missing`},
		"a type that there is not":    {strings.Replace(file, "type: double", "type: doubl", 1), `"doubl" is not a type; use one of bool, int, double, string, duration, timestamp, list(T) or map(T) (did you mean "double"?)`},
		"a list of lists":             {strings.Replace(file, "list(string)", "list(list(string))", 1), `is not a type`},
		"no type":                     {strings.Replace(file, "{type: string}", "{}", 1), `spec.params.needed.type: required field is missing`},
		"a name that is no word":      {strings.Replace(file, "needed:", "need-ed:", 1), `"need-ed" is not an identifier`},
		"a parameter declared twice":  {strings.Replace(file, "needed:", "margin:", 1), `parameter "margin" is already defined`},
		"a default of another type":   {strings.Replace(file, "default: 10", "default: ten", 1), `spec.params.rows.default: must be int`},
		"values of more than 64 KiB":  {file + "---\n" + bindingYAML("b", "gate", "{needed: "+strings.Repeat("x", 70_000)+"}"), `the limit is 65536`},
		"a number beyond an int":      {file + "---\n" + bindingYAML("b", "gate", "{rows: 99999999999999999999}"), `must be int`},
		"parameters that are a list":  {strings.Replace(file, "  params:", "  params: []\n  variables:", 1), `must be a mapping of names to types`},
		"a policy without parameters": {policyYAML("gate", "{}", rule("r", "params.x == 1")), `undeclared reference to 'params'`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := governance.Load(governance.Options{}, governance.Source{Name: "test.yaml", Data: []byte(c.file)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant it to contain %q", err, c.want)
			}
		})
	}
}
