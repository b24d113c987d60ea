package stages_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

// forecast is a stage that reads some of its input.
type forecast struct {
	stages.Func
	err error
}

func (f forecast) Forecast(task *stages.Task, _ stages.Binding) (from, to uint64, err error) {
	var p struct{ From, To uint64 }
	if err := task.Decode(&p); err != nil {
		return 0, 0, err
	}
	if f.err != nil {
		task.Progress(1, 2, "") // which it does not have
	}
	return p.From, p.To, f.err
}

// syncing makes objects whose only copy may be there.
type syncing struct{ tiers.ObjectStore }

func (syncing) Syncs() bool { return true }

// later is an assignment of a stage before one that will read "in".
func later(name string) stages.Assignment {
	return stages.Assignment{
		Pipeline: pipeline, Run: "run-" + name, Stage: "now", Attempt: 1,
		Upcoming: []stages.Upcoming{{Stage: "later", Input: stages.Binding{Name: "in", Dataset: "in"}}},
	}
}

// cold makes "in" of batches in the cold tier alone, and a process that leaves warm
// copies of what it reads there, within quota bytes.
func (w *world) cold(batches int, quota int64) *process {
	w.tb.Helper()
	dir, err := objectdir.Open(filepath.Join(w.tb.TempDir(), "cold"))
	if err != nil {
		w.tb.Fatal(err)
	}
	objects := func(c *tiers.Config) { c.Cold = syncing{dir} }
	full := w.process(objects)
	full.fill("in", batches, 1000)
	for seq := range uint64(batches) {
		if _, err := full.Store.Move(w.ctx, tiers.Migration{Dataset: "in", Sequence: seq, Evict: true}, nil); err != nil {
			w.tb.Fatal(err)
		}
	}
	return w.process(objects, func(c *tiers.Config) { c.Promote.WarmBytes = quota })
}

// warm lists which batches of "in" have a warm copy, and which are in the arena.
func (p *process) where(batches int) (warm, hot []uint64) {
	p.w.tb.Helper()
	for seq := range uint64(batches) {
		ref, err := p.Store.Ref(p.w.ctx, "in", seq)
		if err != nil {
			p.w.tb.Fatal(err)
		}
		if _, ok := ref.In(arrowio.Warm); ok {
			warm = append(warm, seq)
		}
		b, err := p.Store.OpenBatch(p.w.ctx, ref, false)
		if err != nil {
			p.w.tb.Fatal(err)
		}
		if b.Tier == arrowio.Hot {
			hot = append(hot, seq)
		}
		b.Release()
	}
	return warm, hot
}

// untilPrepared is a stage that works until n batches have been brought nearer.
func untilPrepared(p *process, n uint64) stages.Func {
	return func(context.Context, *stages.Task) error {
		if !within(15*time.Second, func() bool { return p.ReadAhead().Prepared >= n }) {
			return fmt.Errorf("prepared %+v, want %d batches", p.ReadAhead(), n)
		}
		return nil
	}
}

// TestLaterStagesArePreparedFor: while one stage works, what the next will read comes
// from the cold tier to the warm one and the arena, within the quotas.
func TestLaterStagesArePreparedFor(t *testing.T) {
	params := json.RawMessage(`{"from":3,"to":7}`)
	for name, tc := range map[string]struct {
		stage  stages.Stage
		bounds stages.Ahead
		quota  int64
		n      uint64
		want   []uint64
		hot    int // of them at least
	}{
		"what it forecasts":        {forecast{}, stages.Ahead{}, 1 << 20, 4, []uint64{3, 4, 5, 6}, 4},
		"all of it":                {nil, stages.Ahead{}, 1 << 20, 10, []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 10},
		"as far as disk has room":  {nil, stages.Ahead{Bytes: 1}, 30_000, 3, []uint64{0, 1, 2}, 0},
		"as far as memory has":     {nil, stages.Ahead{Bytes: 50_000}, 0, 3, nil, 3},
		"no further than the disk": {forecast{}, stages.Ahead{Bytes: 1}, 1 << 20, 4, []uint64{3, 4, 5, 6}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			p := w.cold(10, tc.quota)
			p.Ahead = tc.bounds
			_, err := p.Execute(w.ctx, untilPrepared(p, tc.n), later("prepared"), stages.Hooks{
				Stage: func(string) (stages.Stage, json.RawMessage) { return tc.stage, params },
			})
			if err != nil {
				t.Fatal(err)
			}
			if n := p.ReadAhead(); n.Prepared != tc.n || n.PreparedBytes < int64(tc.n)*8000 {
				t.Errorf("%+v", n)
			}
			warm, hot := p.where(10)
			equal(t, "warm", warm, tc.want...)
			if len(hot) != tc.hot {
				t.Errorf("in the arena: %v, want %d", hot, tc.hot)
			}
		})
	}
}

// TestPreparingEndsWithTheStage: nothing goes on after it, and what cannot be known
// or read does not matter to it.
func TestPreparingEndsWithTheStage(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.cold(10, 1<<20)
	broken := errors.New("broken")
	now := stages.Func(func(context.Context, *stages.Task) error { return broken })
	for name, tc := range map[string]struct {
		ahead stages.Ahead
		stage stages.Stage
		input string
	}{
		"at once":               {stages.Ahead{}, nil, "in"},
		"not asked for":         {stages.Ahead{Off: true}, nil, "in"},
		"a forecast that fails": {stages.Ahead{}, forecast{err: broken}, "in"},
		"a forecast of nothing": {stages.Ahead{}, forecast{}, "in"},
		"a dataset that is not": {stages.Ahead{}, nil, "none"},
		"a name that is none":   {stages.Ahead{}, nil, "a//../b"},
	} {
		t.Run(name, func(t *testing.T) {
			p.Ahead = tc.ahead
			a := later(name)
			a.Upcoming[0].Input.Dataset = tc.input
			_, err := p.Execute(w.ctx, now, a, stages.Hooks{
				Stage: func(string) (stages.Stage, json.RawMessage) { return tc.stage, nil },
			})
			if !errors.Is(err, broken) {
				t.Errorf("%v", err)
			}
			if st := p.arena.Stats(); st.Leases != 0 || st.Loans != 0 {
				t.Errorf("something goes on: %+v", st)
			}
		})
	}
}
