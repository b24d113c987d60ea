package workflows

import (
	"fmt"
	"strings"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"
)

// The typed search attributes that runs and triggers carry.
var (
	attrPipeline = temporal.NewSearchAttributeKeyKeyword("StokeholdPipeline")
	attrRun      = temporal.NewSearchAttributeKeyKeyword("StokeholdRun")
	attrStage    = temporal.NewSearchAttributeKeyKeyword("StokeholdStage")
	attrTrigger  = temporal.NewSearchAttributeKeyKeyword("StokeholdTrigger")
	attrDataset  = temporal.NewSearchAttributeKeyKeyword("StokeholdDataset")
	attrModel    = temporal.NewSearchAttributeKeyKeyword("StokeholdModel")
	attrWaiting  = temporal.NewSearchAttributeKeyKeyword("StokeholdWaiting")
	attrBatches  = temporal.NewSearchAttributeKeyInt64("StokeholdBatches")
)

// SearchAttributes are what a Temporal namespace needs registered: the run's
// pipeline, key, trigger, first long-lived dataset and model, the stage that is
// furthest, what it waits for ("approval", "budget" or "approval and budget"), and how many batches were written.
func SearchAttributes() map[string]enums.IndexedValueType {
	out := map[string]enums.IndexedValueType{attrBatches.GetName(): attrBatches.GetValueType()}
	for _, k := range []temporal.SearchAttributeKeyKeyword{attrPipeline, attrRun, attrStage, attrTrigger, attrDataset, attrModel, attrWaiting} {
		out[k.GetName()] = k.GetValueType()
	}
	return out
}

func startAttributes(d *Definition, in RunInput) temporal.SearchAttributes {
	set := []temporal.SearchAttributeUpdate{attrPipeline.ValueSet(d.Name), attrRun.ValueSet(in.Run)}
	if in.Trigger != "" {
		set = append(set, attrTrigger.ValueSet(in.Trigger))
	}
	if name := d.mainDataset(); name != "" {
		set = append(set, attrDataset.ValueSet(name))
	}
	if name := d.mainModel(); name != "" {
		set = append(set, attrModel.ValueSet(name))
	}
	return temporal.NewSearchAttributes(set...)
}

// mainDataset is the first long-lived dataset that the pipeline writes, or else reads.
func (d *Definition) mainDataset() string {
	for _, s := range d.Graph {
		if s.Into != "" {
			return s.Into
		}
	}
	for _, s := range d.Sources {
		if s.Dataset != "" {
			return s.Dataset
		}
	}
	return ""
}

// mainModel is the first model that the pipeline makes, or else uses.
func (d *Definition) mainModel() string {
	for _, s := range d.Graph {
		if m := d.modelOf(s); m != "" {
			return m
		}
	}
	for _, s := range d.Sources {
		if s.Model != "" {
			return s.Model
		}
	}
	return ""
}

// summary is the one line that the Temporal UI shows for a run.
func summary(d *Definition, in RunInput) string {
	s := d.Name
	switch {
	case in.Trigger != "":
		s += " by trigger " + in.Trigger
	case in.Cause != "":
		s += " by event " + in.Cause
	}
	return clip(s, 190)
}

// details is the Markdown that the Temporal UI shows for a run from its start.
func details(d *Definition, in RunInput) string {
	var b strings.Builder
	if d.Description != "" {
		fmt.Fprintf(&b, "%s\n\n", d.Description)
	}
	if in.Cause != "" {
		fmt.Fprintf(&b, "Caused by event `%s`", in.Cause)
		if in.Trigger != "" {
			fmt.Fprintf(&b, " through trigger `%s`", in.Trigger)
		}
		b.WriteString(".\n\n")
	}
	fmt.Fprintf(&b, "```\n%s```\n\n", d.text(nil))
	return clip(b.String(), 16<<10)
}

// clip shortens s to at most n bytes, on a rune boundary.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const mark = "…"
	n -= len(mark)
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n] + mark
}
