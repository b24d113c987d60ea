package governance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/stokehold/stokehold/events"
)

// node is a JSON Schema, or a part of one.
type node = map[string]any

// SchemaID is the address of the schema of policy files.
const SchemaID = "https://stokehold.dev/schemas/policy.schema.json"

// Schema returns the JSON Schema (draft 2020-12) of one document of a policy
// file, for editors. Load checks more: expressions, paths, and names across
// documents. docs/policy.schema.json is this.
func Schema() ([]byte, error) {
	doc := node{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"$id":         SchemaID,
		"title":       "Stokehold policy",
		"description": "A policy for events, or values of a policy's parameters.",
		"oneOf":       []node{documentSchema(Kind, policySchema()), documentSchema(KindBinding, bindingSchema())},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("governance: encode the schema of policies: %w", err)
	}
	return b.Bytes(), nil
}

func objectSchema(description string, properties node, required ...string) node {
	n := node{"type": "object", "additionalProperties": false, "properties": properties}
	if description != "" {
		n["description"] = description
	}
	if len(required) > 0 {
		n["required"] = required
	}
	return n
}

func textSchema(description string, maxLength int) node {
	return node{"type": "string", "description": description, "maxLength": maxLength}
}

func nameSchema(description string) node {
	return node{"type": "string", "description": description, "pattern": nameRule.String()}
}

func listSchema(description string, maxItems int, items node) node {
	return node{"type": "array", "description": description, "maxItems": maxItems, "items": items}
}

func choiceSchema[T ~string](description string, values ...T) node {
	return node{"type": "string", "description": description, "enum": values}
}

func documentSchema(kind string, spec node) node {
	return objectSchema("", node{
		"apiVersion": node{"const": APIVersion},
		"kind":       node{"const": kind},
		"metadata": objectSchema("", node{
			"name":        nameSchema("Unique in the set."),
			"description": textSchema("What it is for.", 4096),
		}, "name"),
		"spec": spec,
	}, "apiVersion", "kind", "metadata", "spec")
}

func policySchema() node {
	patterns := func(of string) node {
		return listSchema("Patterns of "+of+": * stands for any characters, ? for one. Empty: all.", maxPatternsOfMatch, node{"type": "string", "maxLength": maxPatternBytes})
	}
	expression := func(description string) node { return textSchema(description, maxExpressionChars) }
	return objectSchema("What events must hold, and what becomes of those that do not.", node{
		"match": objectSchema("Which events the policy is about. Every list given must have a pattern that matches.", node{
			"types": patterns("event types"), "subjects": patterns("subjects"), "pipelines": patterns("pipelines"), "stages": patterns("stages"),
			"points": listSchema("When it is evaluated; default both.", 2, choiceSchema("", events.OnPublish, events.OnReceive)),
		}),
		"params": node{
			"type": "object", "description": "Values that a Binding document may override; expressions read params.NAME.",
			"maxProperties": MaxParams, "propertyNames": node{"pattern": identRule.String()},
			"additionalProperties": objectSchema("", node{
				"type":        node{"type": "string", "description": "bool, int, double, string, duration, timestamp, list(T) or map(T).", "pattern": paramTypePattern()},
				"default":     node{"description": "The value without a binding; none: what reads it fails."},
				"description": textSchema("What it is for.", 4096),
			}, "type"),
		},
		"variables": listSchema("Named expressions, evaluated once an event if a rule reads them as variables.NAME; each sees those before it.", MaxRules, objectSchema("", node{
			"name":       node{"type": "string", "pattern": identRule.String()},
			"expression": expression("CEL, of any type."),
		}, "name", "expression")),
		"rules":   node{"type": "array", "description": "What must hold.", "minItems": 1, "maxItems": MaxRules, "items": ruleSchema(expression)},
		"failure": choiceSchema("What an expression that cannot be evaluated means; default deny.", failDeny, failIgnore),
		"mode":    choiceSchema("How much takes effect: all, warnings only, or notes in the decision log only; default enforce.", Enforce, WarnOnly, Audit),
	}, "rules")
}

func ruleSchema(expression func(string) node) node {
	paths := func(what string) node {
		return listSchema(what, MaxRedactions, node{"type": "string", "minLength": 1, "maxLength": maxPathBytes})
	}
	rule := objectSchema("", node{
		"name":              nameSchema("Unique in the policy."),
		"expression":        expression("CEL: what must hold; gives a bool."),
		"message":           textSchema("One line for a person, if it does not hold.", maxReasonBytes),
		"messageExpression": expression("CEL: the message; gives a string."),
		"reason":            node{"type": "string", "description": "One word for programs.", "pattern": reasonRule.String()},
		"action":            choiceSchema("What becomes of an event that does not hold it; default deny.", ruleActions()...),
		"approval": objectSchema("Who must approve, with action: requireApproval.", node{
			"roles":   listSchema("An approver has one of them; none: any approver.", MaxRoles, nameSchema("")),
			"quorum":  node{"type": "integer", "description": "People who must approve; default 1.", "minimum": 1, "maximum": MaxQuorum},
			"expires": node{"type": "string", "description": "How long a request waits and an approval counts, e.g. 24h (the default).", "pattern": `^([0-9]+(\.[0-9]+)?(h|m|s))+$`},
		}),
		"redact": objectSchema("What to take out, with action: redact.", node{
			"drop": paths("Paths of event data to leave out, e.g. data.user.email; * is any key or element."), "mask": paths("Paths of event data to replace: a text by [redacted], anything else by null."),
			"dropColumns": paths("Columns of the event's batch to leave out."), "maskColumns": paths("Columns of the event's batch to make null."),
		}),
		"route": objectSchema("Where to send the event, with action: route.", node{
			"pipeline": nameSchema("The pipeline that handles it."), "tier": choiceSchema("Where its batch belongs.", tiersOfRefs()...),
			"workers": nameSchema("The class of workers."), "region": nameSchema("Where they are."),
		}),
	}, "name", "expression")
	// An action has the block that it needs, and no other has it.
	is := func(a ruleAction) node {
		return node{"properties": node{"action": node{"const": a}}, "required": []string{"action"}}
	}
	only := func(field string, a ruleAction, needed ...string) node {
		return node{"if": is(a), "then": node{"required": append([]string{}, needed...)}, "else": node{"properties": node{field: false}}}
	}
	rule["allOf"] = []node{only("redact", actionRedact, "redact"), only("route", actionRoute, "route"), only("approval", actionApproval)}
	return rule
}

func bindingSchema() node {
	return objectSchema("Values for the parameters of one policy.", node{
		"policy": nameSchema("The policy."),
		"params": node{"type": "object", "description": "Values by the names of parameters."},
	}, "policy", "params")
}

func ruleActions() []ruleAction {
	return []ruleAction{actionDeny, actionWarn, actionQuarantine, actionRedact, actionRoute, actionApproval}
}

func paramTypePattern() string {
	names := strings.Join(paramScalars, "|")
	return "^(" + names + "|(list|map)\\((" + names + ")\\))$"
}
