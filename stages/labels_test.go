package stages_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
	"github.com/stokehold/stokehold/tiers"
)

func (p *process) labels(dataset string) label.Set {
	p.w.tb.Helper()
	h, err := p.Store.Head(p.w.ctx, dataset)
	if err != nil {
		p.w.tb.Fatal(err)
	}
	return h.Labels
}

func (p *process) registry() {
	p.w.tb.Helper()
	var err error
	if p.Registry, err = models.Open(p.w.ctx, models.Config{Conn: p.w.conn, Bus: p.w.bus, Dir: p.w.tb.TempDir()}); err != nil {
		p.w.tb.Fatal(err)
	}
}

// mixes reads what is wired to it, or some of it, and makes a dataset or a model; it
// declares nothing.
var mixes = stages.Func(func(ctx context.Context, task *stages.Task) error {
	for _, in := range task.Inputs() {
		if in.Dataset == "" {
			continue
		}
		for _, err := range task.Range(ctx, in.Name, 0, 1) {
			if err != nil {
				return err
			}
			break // the rest is known to it all the same
		}
	}
	var p struct{ Artifact []byte }
	if err := task.Decode(&p); err != nil {
		return err
	}
	if p.Artifact != nil {
		_, err := task.SaveModel(ctx, models.Version{Model: "m", Format: models.Opaque, Kind: "test/v1"}, p.Artifact)
		return err
	}
	return write(ctx, task, 1, 1)
})

// Over random graphs of datasets and models: nothing is less restricted than any of what
// it was made of, however far back.
func TestLabelsFlowAlongLineage(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.registry()
	declared := []string{"pii:contact", "pii:health", "residency:eu", "residency:us", "residency:ch", "licence:cc0-1.0", "licence:cc-by-nc-4.0", "embargo"}
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 4))
		type made struct {
			binding stages.Binding
			labels  label.Set
			from    []int // direct inputs
		}
		var nodes []made
		for i := range 7 {
			name := fmt.Sprintf("g%d-%d", seed, i)
			a := stages.Assignment{Pipeline: pipeline, Run: name, Stage: "mixes", Attempt: 1}
			for _, l := range declared {
				if rng.IntN(8) == 0 {
					a.Labels = append(a.Labels, l)
				}
			}
			n := made{}
			for j := range nodes {
				if rng.IntN(3) == 0 {
					n.from = append(n.from, j)
					a.Inputs = append(a.Inputs, nodes[j].binding)
				}
			}
			if rng.IntN(3) == 0 {
				a.Model, a.Params = "m", params(map[string]any{"artifact": []byte(name)})
				res := p.run(mixes, a)
				v, err := p.Registry.Get(w.ctx, "m", res.Version)
				if err != nil {
					t.Fatal(err)
				}
				n.binding, n.labels = stages.Binding{Name: name, Model: "m", Version: v.ID}, v.Labels
			} else {
				a.Output, a.Seal = name, rng.IntN(2) == 0
				p.run(mixes, a)
				n.binding, n.labels = stages.Binding{Name: name, Dataset: name}, p.labels(name)
			}
			own, err := label.Parse(a.Labels)
			if err != nil {
				t.Fatal(err)
			}
			if !n.labels.Covers(own) {
				t.Errorf("seed %d: node %d has %v and declares %v", seed, i, n.labels, own)
			}
			nodes = append(nodes, n)
		}
		ancestors := make([]map[int]bool, len(nodes))
		for i, n := range nodes {
			ancestors[i] = map[int]bool{}
			for _, j := range n.from {
				ancestors[i][j] = true
				for k := range ancestors[j] {
					ancestors[i][k] = true
				}
			}
			for j := range ancestors[i] {
				if !n.labels.Covers(nodes[j].labels) {
					t.Errorf("seed %d: node %d has %v, its ancestor %d %v", seed, i, n.labels, j, nodes[j].labels)
				}
			}
		}
	}
}

// An attempt that goes on from a checkpoint does not read again what its state is made of.
func TestLabelsOfAResumedStage(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.fill("in", 2, 1)
	if err := p.Store.AddLabels(w.ctx, "in", label.Set{"pii"}); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut off")
	resumed := stages.Func(func(ctx context.Context, task *stages.Task) error {
		var sum int64
		if ok, err := task.Restore(ctx, &sum); err != nil || ok {
			return errors.Join(err, write(ctx, task, sum, 1))
		}
		for b, err := range task.Batches(ctx) {
			if err != nil {
				return err
			}
			sum += first(b)
		}
		return errors.Join(cut, task.Checkpoint(ctx, sum))
	})
	a := stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Output: "out", Inputs: []stages.Binding{{Name: "in", Dataset: "in"}}}
	var seen reports
	if _, err := p.Execute(w.ctx, resumed, a, stages.Hooks{Report: seen.add}); !errors.Is(err, cut) {
		t.Fatal(err)
	}
	a.Attempt = 2
	if _, err := p.Execute(w.ctx, resumed, a, stages.Hooks{Previous: seen.last()}); err != nil {
		t.Fatal(err)
	}
	equal(t, "labels", p.labels("out"), "pii")
}

// What a run appends to a dataset is there for the next one's readers; and a stage that
// begins before its input is there, or before that gets a label, has it all the same.
func TestLabelsOfWhatComesLater(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	appending := func(run string, labels ...string) {
		p.run(numbers, stages.Assignment{
			Pipeline: pipeline, Run: run, Stage: "numbers", Attempt: 1, Output: "long", Labels: labels, Params: params(map[string]any{"batches": 1, "rows": 1}),
		})
	}
	followed := stages.Func(func(ctx context.Context, task *stages.Task) error {
		appending("run-1")
		for b, err := range task.Range(ctx, "long", 0, 2) {
			if err != nil {
				return err
			}
			if err := write(ctx, task, first(b), 1); err != nil {
				return err
			}
			if b.Ref.Sequence == 0 {
				equal(t, "labels so far", p.labels("out"))
				appending("run-2", "residency:eu")
			}
		}
		return p.Store.AddLabels(ctx, "long", label.Set{"embargo"})
	})
	p.run(followed, stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Output: "out", Inputs: []stages.Binding{{Name: "long", Dataset: "long"}}})
	equal(t, "labels", p.labels("out"), "embargo", "residency:eu")
	appending("run-3")
	equal(t, "labels of what was appended to", p.labels("long"), "embargo", "residency:eu")
	for b, err := range p.Store.Entries(w.ctx, "out", 1, 2) {
		if err != nil {
			t.Fatal(err)
		}
		equal(t, "labels of the second batch", b.Labels, "residency:eu")
	}
}

// The labels are the host's to give: a child process has no say.
func TestLabelsOfAChildsOutput(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process().children()
	p.fill("in", 2, 10)
	if err := p.Store.AddLabels(w.ctx, "in", label.Set{"pii", "residency:eu"}); err != nil {
		t.Fatal(err)
	}
	a := childAssignment("double", true)
	a.Labels = []string{"licence:cc0-1.0"}
	p.run(double, a)
	equal(t, "labels", p.labels(a.Output), "licence:cc0-1.0", "pii", "residency:eu")
}

func TestLabelsOfPythonsOutput(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.python(worker.Config{})
	p.fill("in", 3, 10)
	if err := p.Store.AddLabels(w.ctx, "in", label.Set{"pii"}); err != nil {
		t.Fatal(err)
	}
	a := pythonAssignment("twice")
	p.run(stages.Remote{Output: schema}, a)
	equal(t, "labels", p.labels(a.Output), "pii")
}

// deniesDeclassification is what governance does without a policy.
var deniesDeclassification = denying{func(ev *events.Event) string {
	if ev.Type() == events.TypeLabelDeclassified {
		return "nobody may"
	}
	return ""
}}

func TestStageThatDeclassifies(t *testing.T) {
	for _, c := range []struct {
		name    string
		judge   events.Judge
		allowed bool
	}{{"denied", deniesDeclassification, false}, {"allowed", events.AllowAll(), true}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, c.judge)
			p := w.process()
			p.registry()
			p.fill("in", 2, 1)
			if err := p.Store.AddLabels(w.ctx, "in", label.Set{"pii:health", "residency:eu"}); err != nil {
				t.Fatal(err)
			}
			a := stages.Assignment{
				Pipeline: pipeline, Run: "r", Stage: "hash", Attempt: 1, Output: "out", Actor: "ada", Inputs: []stages.Binding{{Name: "in", Dataset: "in"}},
				Declassify: &label.Declassification{Labels: []string{"pii"}, Reason: "hashed"},
			}
			_, err := p.Execute(w.ctx, double, a, stages.Hooks{})
			if !c.allowed {
				if _, headErr := p.Store.Ref(w.ctx, "out", 0); !errors.Is(err, events.ErrDenied) || !stages.IsPermanent(err) || !errors.Is(headErr, tiers.ErrNotFound) {
					t.Errorf("%v; the output: %v", err, headErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "labels", p.labels("out"), "residency:eu")
			a.Attempt = 2 // asks nothing twice
			p.run(double, a)
			if got := w.published(events.TypeLabelDeclassified); len(got) != 1 {
				t.Errorf("asked %q", got)
			}

			m := a
			m.Stage, m.Output, m.Model, m.Params = "train", "", "m", params(map[string]any{"artifact": []byte("x")})
			res := p.run(mixes, m)
			v, err := p.Registry.Get(w.ctx, "m", res.Version)
			if err != nil {
				t.Fatal(err)
			}
			equal(t, "labels of the model", v.Labels, "residency:eu")
			for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{events.TypeLabelDeclassified}}) {
				if err != nil {
					t.Fatal(err)
				}
				ls, err := events.LabelsOf(&d.Event)
				var of events.LabelDeclassified
				if err = errors.Join(err, d.DataAs(&of)); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(ls, []string{"pii:health", "residency:eu"}) || d.Extensions()[events.ExtActor] != "ada" ||
					!slices.Equal(of.Removed, []string{"pii:health"}) || !slices.Equal(of.Labels, []string{"residency:eu"}) || of.Reason != "hashed" {
					t.Errorf("%v %+v", ls, of)
				}
			}
		})
	}
}

// What was declassified on its dataset stays so for who reads the batches from before.
func TestReadersOfADeclassifiedDataset(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.run(numbers, stages.Assignment{
		Pipeline: pipeline, Run: "r0", Stage: "numbers", Attempt: 1, Output: "in", Seal: true, Labels: []string{"pii"}, Params: params(map[string]any{"batches": 3, "rows": 1}),
	})
	if _, err := p.Store.Declassify(w.ctx, "in", label.Declassification{Labels: []string{"pii"}, Reason: "hashed"}, "ada"); err != nil {
		t.Fatal(err)
	}
	p.run(double, stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Output: "out", Inputs: []stages.Binding{{Name: "in", Dataset: "in"}}})
	equal(t, "labels", p.labels("out"))
}

// An event says what it may tell of; what its publisher says can only be more.
func TestLabelsOfAStagesEvents(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.registry()
	p.fill("in", 1, 1)
	if err := p.Store.AddLabels(w.ctx, "in", label.Set{"pii"}); err != nil {
		t.Fatal(err)
	}
	v, err := p.Registry.Register(w.ctx, models.Version{Model: "m", Format: models.Opaque, Kind: "k", Labels: label.Set{"licence:cc0-1.0"}}, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	p.run(stages.Func(func(ctx context.Context, task *stages.Task) error {
		return errors.Join(
			task.Publish(ctx, events.TypeDriftDetected, "m", "drift", time.Time{}, events.DriftDetected{Model: "m"}),
			task.Publish(ctx, events.TypePromotionRequested, "m", "ask", time.Time{}, events.PromotionRequested{Model: "m", Challenger: v.ID, Place: &events.Place{Region: "mine"}}))
	}), stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Inputs: []stages.Binding{{Name: "in", Dataset: "in"}}})
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{events.TypeDriftDetected, events.TypePromotionRequested}}) {
		if err != nil {
			t.Fatal(err)
		}
		got, err := events.LabelsOf(&d.Event)
		if err != nil {
			t.Fatal(err)
		}
		if d.Type() == events.TypeDriftDetected {
			equal(t, "labels of a finding", got, "pii")
			continue
		}
		var r events.PromotionRequested
		if err := d.DataAs(&r); err != nil || r.Place != nil {
			t.Errorf("the place is %+v, the registry's is not known; %v", r.Place, err)
		}
		equal(t, "labels of a request", got, "licence:cc0-1.0")
	}
}

// A model that a stage looks up is among what its output is made of, though the pipeline
// does not wire it.
func TestLabelsOfAModelLookedUp(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.registry()
	v, err := p.Registry.Register(w.ctx, models.Version{Model: "m", Format: models.Opaque, Kind: "k", Labels: label.Set{"licence:cc-by-nc-4.0"}}, []byte("x"))
	if err == nil {
		err = p.Registry.Promote(w.ctx, models.Promotion{Model: "m", Alias: models.Champion, ID: v.ID})
	}
	if err != nil {
		t.Fatal(err)
	}
	scores := stages.Func(func(ctx context.Context, task *stages.Task) error {
		if err := write(ctx, task, 1, 1); err != nil { // before it knows of the model
			return err
		}
		if _, err := task.Models().Alias(ctx, "m", models.Champion); err != nil {
			return err
		}
		return write(ctx, task, 2, 1)
	})
	p.run(scores, stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Output: "out", Seal: true})
	equal(t, "labels", p.labels("out"), "licence:cc-by-nc-4.0")
	var of []string
	for b, err := range p.Store.Entries(w.ctx, "out", 0, tiers.End) {
		if err != nil {
			t.Fatal(err)
		}
		of = append(of, b.Labels.String())
	}
	equal(t, "labels by batch", of, "", "licence:cc-by-nc-4.0")
}

// A set that cannot be joined is no set with less.
func TestTooManyLabels(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	var inputs []stages.Binding
	for i := range 2 {
		name := fmt.Sprintf("in-%d", i)
		p.fill(name, 1, 1)
		var set []string
		for j := range label.MaxLabels {
			set = append(set, fmt.Sprintf("%s:%d", name, j))
		}
		parsed, err := label.Parse(set)
		if err == nil {
			err = p.Store.AddLabels(w.ctx, name, parsed)
		}
		if err != nil {
			t.Fatal(err)
		}
		inputs = append(inputs, stages.Binding{Name: name, Dataset: name})
	}
	_, err := p.Execute(w.ctx, double, stages.Assignment{Pipeline: pipeline, Run: "r", Stage: "s", Attempt: 1, Output: "out", Inputs: inputs}, stages.Hooks{})
	if !errors.Is(err, label.ErrTooMany) || !stages.IsPermanent(err) {
		t.Error(err)
	}
	if _, err := p.Store.Head(w.ctx, "out"); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("the output: %v", err)
	}
}
