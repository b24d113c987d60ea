package stages_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/pythontest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/models/safetensors"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/worker"
)

// python gives the process a worker whose stages are written in Python.
func (p *process) python(cfg worker.Config) *worker.Pool {
	p.w.tb.Helper()
	if err := pythontest.Touch("worker/testdata"); err != nil {
		p.w.tb.Fatal(err)
	}
	cfg.Command = []string{pythontest.Interpreter(p.w.tb), "worker/testdata/stages.py"}
	cfg.Set = map[string]string{"PYTHONPATH": pythontest.Source(p.w.tb)}
	// Importing pyarrow takes seconds on a busy machine.
	cfg.StartTimeout, cfg.HeartbeatTimeout = time.Minute, time.Minute
	pool := p.pool(cfg)
	p.Workers = map[string]*worker.Pool{"python": pool}
	return pool
}

func pythonAssignment(stage string) stages.Assignment {
	a := childAssignment(stage, true)
	a.Worker = "python"
	return a
}

func TestPythonStage(t *testing.T) {
	for _, mode := range []worker.OutputMode{worker.Sealed, worker.Shared} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t, events.AllowAll())
			p := w.process()
			pool := p.python(worker.Config{Outputs: mode})
			const batches, rows = 10, 200
			p.fill("in", batches, rows)
			var seen reports
			res, err := p.Execute(w.ctx, stages.Remote{Output: schema}, pythonAssignment("twice"), stages.Hooks{Report: seen.add})
			if err != nil {
				t.Fatal(err)
			}
			here := p.firsts(doubledHere(p))
			equal(t, "batches", p.firsts("out-true/twice"), here...)
			if d := res.Data; res.To != batches || res.Rows != batches*rows || d.BatchesIn != batches || d.CopiedBytes != 0 || d.Leased != 2*batches {
				t.Errorf("%+v", res)
			}
			if res.Metrics["total"] == 0 || res.Notes["seed"] != "7" || seen.last().Total != 30 {
				t.Errorf("%+v, %+v", res, seen.last())
			}
			if st := pool.Stats(); st.WrittenBytes != 0 || st.CopiedBytes != 0 || st.Died != 0 || (st.OutShared == batches) != (mode == worker.Shared) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestPythonStageGoesOnAfterACrash gives the second attempt what the first one
// last reported, as the workflow does.
func TestPythonStageGoesOnAfterACrash(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.python(worker.Config{})
	p.fill("in", 6, 10)
	a := pythonAssignment("crash")
	var seen reports
	_, err := p.Execute(w.ctx, stages.Remote{Output: schema}, a, stages.Hooks{Report: seen.add})
	if !errors.Is(err, worker.ErrWorkerDied) || stages.IsPermanent(err) {
		t.Fatal(err)
	}
	previous := seen.last()
	if previous.Written.Batches != 3 {
		t.Fatalf("%+v", previous)
	}
	a.Attempt = 2
	res, err := p.Execute(w.ctx, stages.Remote{Output: schema}, a, stages.Hooks{Previous: previous})
	if err != nil {
		t.Fatal(err)
	}
	if res.To != 6 || res.Rows != 60 || res.Data.BatchesIn != 3 || res.Data.BatchesOut != 6 {
		t.Errorf("%+v", res)
	}
	equal(t, "batches", p.firsts(a.Output), 0, 100, 200, 300, 400, 500)
}

func TestPythonStageSavesAModel(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.python(worker.Config{})
	var err error
	if p.Registry, err = models.Open(w.ctx, models.Config{Conn: w.conn, Bus: w.bus, Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	p.fill("in", 2, 10)
	a := pythonAssignment("model")
	a.Output, a.Seal, a.Model, a.Kind = "", false, "m", "train"
	var seen reports
	res, err := p.Execute(w.ctx, stages.Remote{}, a, stages.Hooks{Report: seen.add})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Registry.Get(w.ctx, "m", res.Version)
	if err != nil || seen.last().Note != res.Version || v.Metrics["auc"] != 0.9 || v.Metadata["by"] != "python" {
		t.Fatalf("%+v, %+v, %v", v, seen.last(), err)
	}
	raw, err := p.Registry.Artifact(w.ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Decode(raw)
	if err != nil || len(f.Tensors) != 2 {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestPythonStageErrors(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	p := w.process()
	p.python(worker.Config{})
	p.fill("in", 2, 10)
	for stage, want := range map[string]string{"fail": "ValueError: it went wrong", "permanent": "never again", "keep": "stokehold.copy"} {
		_, err := p.Execute(w.ctx, stages.Remote{Output: schema}, pythonAssignment(stage), stages.Hooks{})
		if err == nil || !strings.Contains(err.Error(), want) || stages.IsPermanent(err) != (stage == "permanent") {
			t.Errorf("%s: %v", stage, err)
		}
	}
	// What the next stage cannot read is refused where it is made.
	a := pythonAssignment("double")
	if _, err := p.Execute(w.ctx, stages.Remote{Output: schema}, a, stages.Hooks{}); !stages.IsPermanent(err) {
		t.Errorf("a batch of another schema: %v", err)
	}
}
