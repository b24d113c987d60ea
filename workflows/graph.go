package workflows

import (
	"fmt"
	"strings"
)

// Mermaid draws the graph as a Mermaid flowchart. Solid arrows carry data,
// dotted ones are waits (After).
func (d *Definition) Mermaid() string {
	ids := make(map[string]string)
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	for i, s := range d.Sources {
		id := fmt.Sprintf("source%d", i)
		ids[s.Name] = id
		fmt.Fprintf(&b, "  %s[(%q)]\n", id, s.Name)
	}
	for i, s := range d.Graph {
		id := fmt.Sprintf("stage%d", i)
		ids[s.Name] = id
		kind := s.Kind
		if s.Worker != "" {
			kind += ", worker " + s.Worker
		}
		fmt.Fprintf(&b, "  %s[\"%s<br/><i>%s</i>\"]\n", id, s.Name, kind)
	}
	for _, t := range d.Triggers {
		for _, typ := range t.Types {
			if _, ok := ids["event "+typ]; ok {
				continue
			}
			id := fmt.Sprintf("event%d", len(ids))
			ids["event "+typ] = id
			fmt.Fprintf(&b, "  %s>%q]\n", id, typ)
		}
	}
	for _, s := range d.Graph {
		for _, in := range s.Inputs {
			fmt.Fprintf(&b, "  %s --> %s\n", ids[in], ids[s.Name])
		}
		for _, after := range s.After {
			fmt.Fprintf(&b, "  %s -.-> %s\n", ids[after], ids[s.Name])
		}
	}
	for _, t := range d.Triggers {
		for _, typ := range t.Types {
			for _, s := range d.Graph {
				if len(s.Inputs)+len(s.After) == 0 {
					fmt.Fprintf(&b, "  %s -. %s .-> %s\n", ids["event "+typ], "starts", ids[s.Name])
				}
			}
		}
	}
	return b.String()
}

// Text draws the graph for a terminal: one line for each stage, in the order of
// the definition, and one for each trigger.
func (d *Definition) Text() string { return d.text(nil) }

// text appends to each stage's line what note says of it.
func (d *Definition) text(note func(StageDef) string) string {
	var b strings.Builder
	b.WriteString(d.Name)
	if d.Description != "" {
		b.WriteString(": " + d.Description)
	}
	b.WriteByte('\n')
	name, kind := 0, 0
	for _, s := range d.Graph {
		name, kind = max(name, len(s.Name)), max(kind, len(s.Kind))
	}
	for _, s := range d.Graph {
		var parts []string
		if len(s.Inputs) > 0 {
			parts = append(parts, "<- "+strings.Join(s.Inputs, ", "))
		}
		if len(s.After) > 0 {
			parts = append(parts, "after "+strings.Join(s.After, ", "))
		}
		if s.Into != "" {
			parts = append(parts, "-> "+s.Into)
		}
		if s.Kind == KindTrain || s.Kind == KindFineTune {
			parts = append(parts, "=> model "+d.modelOf(s))
		}
		switch {
		case s.Worker != "":
			parts = append(parts, "[worker "+s.Worker+"]")
		case s.ChildProcess:
			parts = append(parts, "[child process]")
		}
		if note != nil {
			parts = append(parts, note(s))
		}
		line := fmt.Sprintf("  %-*s  %-*s  %s", name, s.Name, kind, s.Kind, strings.Join(parts, "  "))
		b.WriteString(strings.TrimRight(line, " "))
		b.WriteByte('\n')
	}
	for _, t := range d.Triggers {
		b.WriteString("  on " + t.describe() + "\n")
	}
	return b.String()
}

func (t Trigger) describe() string {
	s := strings.Join(t.Types, ", ")
	if t.When != "" {
		s += " when " + t.When
	}
	if t.Key != "" {
		s += " by " + t.Key
	}
	if t.Debounce > 0 {
		s += fmt.Sprintf(", debounce %v", t.Debounce)
	}
	if t.Cooldown > 0 {
		s += fmt.Sprintf(", cooldown %v", t.Cooldown)
		if t.EventTime {
			s += " of event time"
		}
	}
	return s
}

// modelOf is the model whose versions the stage makes, "" if it makes none.
func (d *Definition) modelOf(s StageDef) string {
	switch {
	case s.Model != "":
		return s.Model
	case s.Kind == KindTrain || s.Kind == KindFineTune:
		return d.Name
	}
	return ""
}
