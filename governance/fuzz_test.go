package governance_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// FuzzLoad: no file panics; a file is refused with a *LoadError or its set can
// judge.
func FuzzLoad(f *testing.F) {
	if raw, err := os.ReadFile("testdata/promotion.yaml"); err == nil {
		f.Add(raw)
	}
	f.Add([]byte(policyYAML("p", "{types: ['*']}", rule("r", "data.x == 1"))))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("spec: {rules: [{expression: |\n x}]}"))
	f.Add([]byte("--- \n---\n? a\n: b"))
	f.Add([]byte("kind: \"\xff\""))
	f.Fuzz(func(t *testing.T, raw []byte) {
		set, err := governance.Load(typed(), governance.Source{Name: "fuzz.yaml", Data: raw})
		if err != nil {
			var le *governance.LoadError
			if !errors.As(err, &le) || len(le.Faults) == 0 || le.Error() == "" {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		e := engine(t, set, discard)
		ev := newEvent(t, "model.promotion.requested", promo())
		v := judge(t, e, events.OnPublish, ev)[0]
		if v.Action != events.Allow && v.Action != events.Warn && v.Action != events.Deny {
			t.Fatalf("%+v", v)
		}
	})
}

// FuzzStamp: no extension values panic, and none but the engine's own pass.
func FuzzStamp(f *testing.F) {
	set := load(f, governance.Options{})
	e := engine(f, set, discard)
	good := newEvent(f, "batch.published", nil)
	judge(f, e, events.OnPublish, good)
	stamp := stampOf(good)
	f.Add(stamp)
	f.Add(stamp[:len(stamp)-1])
	f.Add(strings.Replace(stamp, ".", "-", 1))
	f.Add("")
	f.Add("...")
	f.Fuzz(func(t *testing.T, text string) {
		ev := newEvent(t, "batch.published", nil)
		ev.Context.(*event.EventContextV1).Extensions[governance.ExtStamp] = text
		v := judge(t, e, events.OnReceive, ev)[0]
		genuine := text == stamp
		if v.Action.Permits() != genuine {
			t.Fatalf("%+v for %q", v, text)
		}
	})
}
