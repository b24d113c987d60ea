package governance_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// overWire sends an event through its JSON form, as another process gets it.
func overWire(t testing.TB, ev *events.Event) *events.Event {
	t.Helper()
	raw, err := json.Marshal(ev)
	if err != nil {
		t.Fatal(err)
	}
	var out events.Event
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

func lastDecision(log *governance.MemoryLog) governance.Decision {
	var d governance.Decision
	for got := range log.Read(context.Background(), time.Time{}) {
		d = got
	}
	return d
}

func TestAnyChangeAfterStampingIsQuarantined(t *testing.T) {
	set := load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "event.id != ''")))
	change := map[string]func(ev *events.Event){
		"id":              func(ev *events.Event) { ev.SetID("ev-2") },
		"type":            func(ev *events.Event) { ev.SetType("drift.detected") },
		"source":          func(ev *events.Event) { ev.SetSource("elsewhere") },
		"subject":         func(ev *events.Event) { ev.SetSubject("early") },
		"no subject":      func(ev *events.Event) { ev.SetSubject("") },
		"time":            func(ev *events.Event) { ev.SetTime(testTime.Add(time.Nanosecond)) },
		"datacontenttype": func(ev *events.Event) { ev.SetDataContentType("text/json") },
		"dataschema":      func(ev *events.Event) { ev.SetDataSchema("urn:other") },
		"data":            func(ev *events.Event) { ev.DataEncoded = []byte(`{"rows":4}`) },
		"no data":         func(ev *events.Event) { ev.DataEncoded = nil },
		"pipeline":        func(ev *events.Event) { ev.SetExtension(events.ExtPipeline, "other") },
		"run":             func(ev *events.Event) { ev.SetExtension(events.ExtRun, "other") },
		"stage":           func(ev *events.Event) { ev.SetExtension(events.ExtStage, nil) },
		"cause":           func(ev *events.Event) { ev.SetExtension(events.ExtCause, "other") },
		"dataref":         func(ev *events.Event) { ev.SetExtension(events.ExtDataRef, "s3://other") },
		"decision":        restamp(1, strings.Repeat("0", 32)),
		"policy":          restamp(0, strings.Repeat("0", 32)),
		"mac":             restamp(2, strings.Repeat("A", 43)),
	}
	for name, f := range change {
		t.Run(name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			e := engine(t, set, log)
			ev := newEvent(t, "batch.published", map[string]int{"rows": 3})
			first := judge(t, e, events.OnPublish, ev)[0]
			ev = overWire(t, ev)
			if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Allow {
				t.Fatalf("untouched: %+v", v)
			}
			f(ev)
			if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Quarantine || v.Reason == "" {
				t.Fatalf("changed: %+v", v)
			}
			if d := lastDecision(log); d.Code != governance.CodeForged || d.Action != events.Quarantine {
				t.Errorf("decision %+v", d)
			}
			// On publish it is judged anew and gets a stamp of its own.
			again := judge(t, e, events.OnPublish, ev)[0]
			if again.Action != events.Allow {
				t.Fatalf("judged anew: %+v", again)
			}
			stampOnly := name == "decision" || name == "policy" || name == "mac"
			if same := again.DecisionID == first.DecisionID; same != stampOnly {
				t.Errorf("decision id the same: %v", same)
			}
			if v := judge(t, e, events.OnReceive, overWire(t, ev))[0]; v.Action != events.Allow {
				t.Errorf("after the new stamp: %+v", v)
			}
		})
	}
}

func TestBrokenStamps(t *testing.T) {
	set := load(t, governance.Options{})
	for name, c := range map[string]struct {
		change func(ev *events.Event)
		code   string
	}{
		"none":        {strip, governance.CodeUnstamped},
		"no policy":   {restamp(0, ""), governance.CodeMalformed},
		"no key":      {restamp(3, ""), governance.CodeMalformed},
		"long key":    {restamp(3, strings.Repeat("k", 33)), governance.CodeMalformed},
		"short mac":   {restamp(2, "abc"), governance.CodeMalformed},
		"a part less": {func(ev *events.Event) { ev.SetExtension(governance.ExtStamp, strings.Repeat("0", 32)) }, governance.CodeMalformed},
		"other dots": {func(ev *events.Event) {
			ev.SetExtension(governance.ExtStamp, strings.ReplaceAll(stampOf(ev), ".", "-"))
		}, governance.CodeMalformed},
		"empty":         {func(ev *events.Event) { ev.Context.(*event.EventContextV1).Extensions[governance.ExtStamp] = "" }, governance.CodeMalformed},
		"a number":      {func(ev *events.Event) { ev.SetExtension(governance.ExtStamp, 7) }, governance.CodeMalformed},
		"not base64":    {restamp(2, strings.Repeat("!", 43)), governance.CodeMalformed},
		"another key":   {restamp(3, "k9"), governance.CodeUnknownKey},
		"upper-case id": {restamp(1, strings.Repeat("A", 32)), governance.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			log := &governance.MemoryLog{}
			e := engine(t, set, log)
			ev := newEvent(t, "batch.published", nil)
			judge(t, e, events.OnPublish, ev)
			c.change(ev)
			v := judge(t, e, events.OnReceive, ev)[0]
			if d := lastDecision(log); v.Action != events.Quarantine || d.Code != c.code {
				t.Errorf("%+v, code %s, want %s", v, d.Code, c.code)
			}
		})
	}
}

func TestUnprotectedExtensionsMayChange(t *testing.T) {
	e := engine(t, load(t, governance.Options{}), &governance.MemoryLog{})
	ev := newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, ev)
	ev.SetExtension("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Allow {
		t.Errorf("%+v", v)
	}
}

func TestStampedEventsAreNotJudgedTwiceOnPublish(t *testing.T) {
	log := &governance.MemoryLog{}
	e := engine(t, load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "event.id != ''"))), log)
	ev := newEvent(t, "batch.published", nil)
	first := judge(t, e, events.OnPublish, ev)[0]
	second := judge(t, e, events.OnPublish, ev)[0]
	if second.DecisionID != first.DecisionID || second.Action != events.Allow {
		t.Errorf("%+v after %+v", second, first)
	}
	c, err := log.Count(context.Background(), time.Time{})
	if err != nil || c.Judged(events.OnPublish) != 1 {
		t.Errorf("%v %v", c, err)
	}
	if s := e.Stats(); s.Trusted != 1 || s.Judged[events.OnPublish] != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestKeyRotation(t *testing.T) {
	log := &governance.MemoryLog{}
	set := load(t, governance.Options{})
	e := engine(t, set, log)
	old := newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, old)
	if err := e.SetKeys(ring(t, "k2", "k1")); err != nil {
		t.Fatal(err)
	}
	fresh := newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, fresh)
	if !strings.HasSuffix(stampOf(fresh), ".k2") {
		t.Errorf("signed by %v", stampOf(fresh))
	}
	for _, v := range judge(t, e, events.OnReceive, old, fresh) {
		if v.Action != events.Allow {
			t.Errorf("both keys known: %+v", v)
		}
	}
	if err := e.SetKeys(ring(t, "k2")); err != nil {
		t.Fatal(err)
	}
	vs := judge(t, e, events.OnReceive, old, fresh)
	if vs[0].Action != events.Quarantine || vs[1].Action != events.Allow {
		t.Errorf("after dropping k1: %+v", vs)
	}
}

func TestPolicyChange(t *testing.T) {
	log := &governance.MemoryLog{}
	first := load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "event.id != ''")))
	second := load(t, governance.Options{}, policyYAML("p", "{}", rule("r", "event.subject != 'late'")))
	e := engine(t, first, log)
	ev := newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, ev)

	e.SetPolicies(second)
	if got := e.Accepted(); len(got) != 1 || got[0] != first.ShortDigest() {
		t.Fatalf("accepted %v", got)
	}
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Deny || v.Policy != "p/r" {
		t.Errorf("the new rules apply to what the old permitted: %+v", v)
	}
	if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Deny {
		t.Errorf("a stamp of the old set counts for nothing on publish: %+v", v)
	}
	if ev.Extensions()[governance.ExtStamp] != nil {
		t.Error("the refused event keeps its stamp")
	}

	e.SetPolicies(first)
	ev = newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, ev)
	e.SetPolicies(load(t, governance.Options{}))
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Allow {
		t.Errorf("within the grace list: %+v", v)
	}
	e.Revoke(first.ShortDigest())
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Quarantine {
		t.Errorf("revoked: %+v", v)
	}
	if d := lastDecision(log); d.Code != governance.CodeStale {
		t.Errorf("decision %+v", d)
	}
	restarted, err := governance.NewEngine(governance.Config{Policies: load(t, governance.Options{}), Log: log, Keys: ring(t, "k1"), Accept: []string{first.ShortDigest()}})
	if err != nil {
		t.Fatal(err)
	}
	if v := judge(t, restarted, events.OnReceive, ev)[0]; v.Action != events.Allow {
		t.Errorf("accepted by configuration: %+v", v)
	}
}

// A rule that reads the time is evaluated on receive also of an event that the
// current policies stamped; one that doesn't has been answered.
func TestReceiveEvaluatesOnlyWhatMayHaveChanged(t *testing.T) {
	now := testTime
	e, err := governance.NewEngine(governance.Config{
		Policies: load(t, governance.Options{},
			policyYAML("fresh", "{}", rule("r", "now - event.time < duration('1h')")),
			policyYAML("arriving", "{points: [receive]}", rule("r", "event.subject != 'never'"))),
		Log: discard, Keys: ring(t, "k1"), Clock: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	ev, never := newEvent(t, "batch.published", nil), newEvent(t, "batch.published", nil)
	never.SetSubject("never")
	for _, v := range judge(t, e, events.OnPublish, ev, never) {
		if v.Action != events.Allow {
			t.Fatalf("%+v", v)
		}
	}
	vs := judge(t, e, events.OnReceive, ev, never)
	if vs[0].Action != events.Allow || vs[1].Policy != "arriving/r" {
		t.Errorf("%+v", vs)
	}
	now = now.Add(2 * time.Hour)
	if v := judge(t, e, events.OnReceive, ev)[0]; v.Policy != "fresh/r" {
		t.Errorf("%+v", v)
	}
}

func TestEngineFailsClosed(t *testing.T) {
	t.Run("without policies", func(t *testing.T) {
		log := &governance.MemoryLog{}
		e := engine(t, nil, log)
		ev := newEvent(t, "batch.published", nil)
		if v := judge(t, e, events.OnPublish, ev)[0]; v.Action != events.Deny || lastDecision(log).Code != governance.CodeNoPolicies {
			t.Errorf("%+v", v)
		}
		if v := judge(t, e, events.OnReceive, ev)[0]; v.Action.Permits() {
			t.Errorf("%+v", v)
		}
	})
	t.Run("default deny", func(t *testing.T) {
		e := engine(t, load(t, governance.Options{Default: events.Deny}, policyYAML("p", "{types: [batch.*]}", rule("r", "true"))), discard)
		vs := judge(t, e, events.OnPublish, newEvent(t, "batch.published", nil), newEvent(t, "drift.detected", nil))
		if vs[0].Action != events.Allow || vs[1].Action != events.Deny {
			t.Errorf("%+v", vs)
		}
	})
	t.Run("log error", func(t *testing.T) {
		full := errors.New("disk full")
		e := engine(t, load(t, governance.Options{}), logFunc(func(context.Context, []governance.Decision) error { return full }))
		ev := newEvent(t, "batch.published", nil)
		vs, err := e.Judge(context.Background(), events.OnPublish, []*events.Event{ev})
		if !errors.Is(err, governance.ErrLog) || !errors.Is(err, full) || vs != nil {
			t.Errorf("%v %v", vs, err)
		}
		if ev.Extensions()[governance.ExtStamp] != nil {
			t.Error("stamped although the decision is not durable")
		}
	})
	t.Run("malformed events", func(t *testing.T) {
		e := engine(t, load(t, governance.Options{}), discard)
		big, huge, noID, noContext := newEvent(t, "a.b", nil), newEvent(t, "a.b", nil), newEvent(t, "a.b", nil), &events.Event{}
		big.DataEncoded = make([]byte, events.MaxDataBytes+1)
		huge.SetSubject(strings.Repeat("x", 10<<20))
		noID.Context.(*event.EventContextV1).ID = "" // the SDK's setter would refuse
		old := newEvent(t, "a.b", nil)
		old.SetSpecVersion("0.3")
		for i, v := range judge(t, e, events.OnPublish, big, huge, noID, noContext, nil, old) {
			if v.Action != events.Deny || v.Reason == "" || len(v.DecisionID) != 32 {
				t.Errorf("event %d: %+v", i, v)
			}
		}
	})
	t.Run("unknown point and ended context", func(t *testing.T) {
		e := engine(t, load(t, governance.Options{}), discard)
		if _, err := e.Judge(context.Background(), "elsewhere", nil); err == nil {
			t.Error("no error")
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := e.Judge(ctx, events.OnPublish, []*events.Event{newEvent(t, "a.b", nil)}); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
	t.Run("configuration", func(t *testing.T) {
		_, err := governance.NewEngine(governance.Config{Accept: []string{"x"}, Deadline: -1})
		if !errors.Is(err, governance.ErrConfig) {
			t.Fatal(err)
		}
		for _, want := range []string{"Log", "Keys", "Accept", "Deadline"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v does not name %s", err, want)
			}
		}
	})
}

func TestDecisionsAreDurableBeforeTheStamp(t *testing.T) {
	var ev *events.Event
	e := engine(t, load(t, governance.Options{}), logFunc(func(_ context.Context, ds []governance.Decision) error {
		if len(ds) != 1 || ev.Extensions()[governance.ExtStamp] != nil {
			return fmt.Errorf("%d decisions, extensions %v", len(ds), ev.Extensions())
		}
		return nil
	}))
	ev = newEvent(t, "batch.published", nil)
	judge(t, e, events.OnPublish, ev)
	if ev.Extensions()[governance.ExtStamp] == nil {
		t.Error("no stamp")
	}
}

func TestConcurrentUseAndHotSwap(t *testing.T) {
	a := load(t, typed(), policyYAML("p", gate, rule("r", "data.challenger.logloss < data.champion.logloss")+rule("l", "data.labels.all(l, l != 'pii')")))
	b := load(t, typed(), policyYAML("p", gate, rule("r", "data.challenger.rows > 1")))
	log := &governance.MemoryLog{}
	e := engine(t, a, log)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				ev := newEvent(t, "model.promotion.requested", promo())
				ev.SetID(fmt.Sprintf("%d-%d", w, i))
				for _, at := range []events.Point{events.OnPublish, events.OnReceive} {
					vs, err := e.Judge(context.Background(), at, []*events.Event{ev})
					if err != nil || !vs[0].Action.Permits() {
						t.Errorf("%v %v", vs, err)
						return
					}
				}
				if i%10 == 0 {
					e.SetPolicies([]*governance.PolicySet{a, b}[(w+i/10)%2])
				}
			}
		})
	}
	wg.Wait()
}

func TestKeys(t *testing.T) {
	k, err := governance.NewKey("k1")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s", k, k, k, k), k.LogValue().String()} {
		if strings.Contains(s, string(k.Secret)) || strings.Contains(s, fmt.Sprint(k.Secret)) || !strings.Contains(s, "k1") { //nolint:staticcheck // neither as text nor as a list of numbers
			t.Errorf("%q", s)
		}
	}
	if _, err := governance.NewKeyRing(k, k); !errors.Is(err, governance.ErrKey) {
		t.Error(err)
	}
	if _, err := governance.NewKeyRing(governance.Key{ID: "k1", Secret: []byte("short")}); !errors.Is(err, governance.ErrKey) {
		t.Error(err)
	}
	if _, err := governance.NewKey("No Good"); !errors.Is(err, governance.ErrKey) {
		t.Error(err)
	}
	for _, bad := range []string{"", "k1", "k1 !!!", "k1 c2hvcnQ="} {
		if _, err := governance.ParseKeyRing([]byte(bad)); !errors.Is(err, governance.ErrKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKeyFileIsMadeOnceAndKeptSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	set := load(t, governance.Options{})
	ev := newEvent(t, "batch.published", nil)
	for i := range 2 {
		r, err := governance.OpenKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		e, err := governance.NewEngine(governance.Config{Policies: set, Log: discard, Keys: r})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			judge(t, e, events.OnPublish, ev)
		} else if v := judge(t, e, events.OnReceive, ev)[0]; v.Action != events.Allow {
			t.Errorf("after a restart: %+v", v)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := governance.OpenKeyFile(path); !errors.Is(err, governance.ErrKey) {
		t.Errorf("a file that others can read: %v", err)
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}
