package stages_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
)

// mebibyte is about that many rows of record.
const mebibyte = 130_000

// stepping reads two inputs in step, in a child.
func stepping() stages.Assignment {
	a := reader("zips", true)
	a.Inputs = append(a.Inputs, stages.Binding{Name: "other", Dataset: "other"})
	return a
}

// TestInputsInStepLeaveOneAnotherRoom: what a child has of one input never takes the
// room that another needs, though credit would let it.
func TestInputsInStepLeaveOneAnotherRoom(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	full := w.process() // the arena has 8 MiB
	full.fill("in", 16, mebibyte*7/4)
	full.fill("other", 16, mebibyte*7/4)
	for name, ahead := range map[string]stages.Ahead{"ahead": {}, "on demand": {Off: true}} {
		t.Run(name, func(t *testing.T) {
			p := w.elsewhere(nil).children()
			p.Ahead = ahead
			a := stepping()
			a.Run += "-" + name
			a.Output += "/" + name
			if res := p.run(zips, a); res.Data.BatchesIn != 32 || res.Rows != 16 {
				t.Errorf("%+v", res)
			}
		})
	}
}

// TestInputsThatDoNotFitSayHowMuchTheyTake: one batch of each is more than there is
// memory: that is an error with both numbers, and not a wait without end.
func TestInputsThatDoNotFitSayHowMuchTheyTake(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	full := w.process()
	full.fill("in", 2, 4*mebibyte+mebibyte/2)
	full.fill("other", 2, 4*mebibyte+mebibyte/2)
	p := w.elsewhere(nil).children()
	stages.SetStuckAfter(p.Runtime, 200*time.Millisecond)
	_, err := p.Execute(w.ctx, zips, stepping(), stages.Hooks{})
	if err == nil || !stages.IsPermanent(err) {
		t.Fatalf("%v", err)
	}
	for _, said := range []string{"its inputs take 9", "the hot tier has 8388608", "--hot"} {
		if !strings.Contains(err.Error(), said) {
			t.Errorf("%v does not say %q", err, said)
		}
	}
}
