package budget

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// SchemaID is the address of the schema of documents of budgets.
const SchemaID = "https://stokehold.dev/schemas/budget.schema.json"

// Schema returns the JSON Schema (draft 2020-12) of a document, for editors.
// ParseDocument checks more: that a pipeline is of one team, that teams are there,
// time zones, and budgets that are there twice. docs/budget.schema.json is this.
func Schema() ([]byte, error) {
	type node = map[string]any
	object := func(properties node, required ...string) node {
		n := node{"type": "object", "additionalProperties": false, "properties": properties}
		if len(required) > 0 {
			n["required"] = required
		}
		return n
	}
	amount := func(description string) node {
		return node{"type": "number", "minimum": 0, "maximum": maxWhole, "description": description}
	}
	byAccelerator := func(description, each string) node {
		return node{
			"type": "object", "description": description, "maxProperties": maxPrices,
			"propertyNames": node{"pattern": acceleratorForm.String()}, "additionalProperties": amount(each),
		}
	}
	doc := object(node{
		"apiVersion": node{"const": DocumentVersion},
		"kind":       node{"const": DocumentKind},
		"currency":   node{"type": "string", "pattern": currencyForm.String(), "description": "What money is in; shown, never converted."},
		"timeZone":   node{"type": "string", "description": "Where days and months begin, e.g. Europe/Berlin; default UTC."},
		"prices":     byAccelerator("Money per accelerator-second, by accelerator.", "At most nine places."),
		"teams": node{
			"type": "object", "description": "The pipelines of each team; a pipeline is of one team at most.", "maxProperties": maxTeams,
			"propertyNames": node{"pattern": nameForm.String()}, "additionalProperties": node{"type": "array", "items": node{"type": "string"}},
		},
		"budgets": node{"type": "array", "maxItems": MaxBudgets, "items": object(node{
			"scope": node{"type": "string", "maxLength": maxNameBytes, "pattern": `^(team/[^*/]+|pipeline/[^*/]+|run/\*|run/.+/.+)$`,
				"description": "team/NAME, pipeline/NAME, run/PIPELINE/KEY, run/PIPELINE/* or run/*. Of a run the most particular counts."},
			"window":             node{"enum": []Window{Day, Month, PerRun}, "description": "day or month; run, or left out, for runs."},
			"money":              amount("At most six places."),
			"acceleratorSeconds": amount("On all accelerators but cpu."),
			"seconds":            byAccelerator("On accelerators of one kind, also cpu.", "At most six places."),
		}, "scope")},
	}, "apiVersion", "kind", "budgets")
	doc["$schema"], doc["$id"] = "https://json-schema.org/draft/2020-12/schema", SchemaID
	doc["title"], doc["description"] = "Stokehold budgets", "What runs, pipelines and teams may spend."
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("budget: encode the schema: %w", err)
	}
	return b.Bytes(), nil
}
