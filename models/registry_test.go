package models_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/models/safetensors"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type world struct {
	tb    testing.TB
	ctx   context.Context
	bus   *events.Bus
	cfg   models.Config
	deny  string       // event type to deny on publish
	judge events.Judge // instead; nil: all else is allowed
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	tb.Cleanup(cancel)
	w := &world{tb: tb, ctx: ctx}
	conn := natstest.Start(tb).Connect()
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: w})
	if err != nil {
		tb.Fatal(err)
	}
	w.bus = bus
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := bus.Close(ctx); err != nil {
			tb.Errorf("close bus: %v", err)
		}
	})
	cold, err := objectdir.Open(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	w.cfg = models.Config{Conn: conn, Bus: bus, Cold: cold, Dir: filepath.Join(tb.TempDir(), "models")}
	return w
}

// Judge implements events.Judge.
func (w *world) Judge(ctx context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	if w.judge != nil {
		return w.judge.Judge(ctx, at, evs)
	}
	out := make([]events.Verdict, len(evs))
	for i, ev := range evs {
		out[i] = events.Verdict{Action: events.Allow}
		if at == events.OnPublish && ev.Type() == w.deny {
			out[i] = events.Verdict{Action: events.Deny, Reason: "not today"}
		}
	}
	return out, nil
}

func (w *world) open() *models.Registry {
	w.tb.Helper()
	r, err := models.Open(w.ctx, w.cfg)
	if err != nil {
		w.tb.Fatal(err)
	}
	return r
}

func (w *world) published(typ string) map[string]int {
	w.tb.Helper()
	got := map[string]int{}
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{typ}}) {
		if err != nil {
			w.tb.Fatal(err)
		}
		got[d.ID()]++
	}
	return got
}

// artifact makes a model of one number.
func artifact(tb testing.TB, v float64) []byte {
	tb.Helper()
	raw, err := safetensors.Encode(safetensors.File{Tensors: []safetensors.Tensor{safetensors.Float64s("w", []int64{1}, []float64{v})}})
	if err != nil {
		tb.Fatal(err)
	}
	return raw
}

const model = "flights/late"

func draft(run string) models.Version {
	return models.Version{
		Model: model, Format: models.Safetensors, Kind: "logistic/v1",
		Metrics: map[string]float64{"logloss": 0.5},
		Lineage: models.Lineage{Pipeline: "flights-train", Run: run, Stage: "train", Datasets: []models.DatasetUse{{Dataset: "flights/features", To: 2, SHA256: []string{"a", "b"}}}},
	}
}

func (w *world) register(r *models.Registry, run string, weight float64) models.Version {
	w.tb.Helper()
	v, err := r.Register(w.ctx, draft(run), artifact(w.tb, weight))
	if err != nil {
		w.tb.Fatal(err)
	}
	return v
}

func TestRegister(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	v := w.register(r, "run-1", 1)
	if len(v.ID) != 64 || v.Short() != v.ID[:12] || v.Status != models.Registered || v.Bytes == 0 || v.Created.IsZero() {
		t.Errorf("version %+v", v)
	}
	again := draft("run-2")
	again.Metrics = map[string]float64{"auc": 0.7}
	v2, err := r.Register(w.ctx, again, artifact(t, 1))
	if err != nil || v2.ID != v.ID || v2.Lineage.Run != "run-1" || v2.Metrics["auc"] != 0.7 || v2.Metrics["logloss"] != 0.5 {
		t.Errorf("again: %+v, %v", v2, err)
	}
	if got := w.published(events.TypeModelRegistered); len(got) != 1 || got[model+"/"+v.ID] != 1 {
		t.Errorf("model.registered: %v", got)
	}
	if raw, err := r.Artifact(w.ctx, v); err != nil || !bytes.Equal(raw, artifact(t, 1)) {
		t.Errorf("artifact of %d bytes, %v", len(raw), err)
	}
	if got, err := r.Get(w.ctx, model, v.ID[:8]); err != nil || got.ID != v.ID {
		t.Errorf("by prefix: %+v, %v", got, err)
	}
	if m, err := v2.Metric("auc"); err != nil || m != 0.7 {
		t.Errorf("metric: %v, %v", m, err)
	}
	if _, err := v2.Metric("recall"); !errors.Is(err, models.ErrMetrics) {
		t.Errorf("absent metric: %v", err)
	}
	if err := r.AddMetrics(w.ctx, model, v.ID, map[string]float64{"ks": 0.1}); err != nil {
		t.Error(err)
	}
	if got, err := w.open().Get(w.ctx, model, v.ID); err != nil || len(got.Metrics) != 3 {
		t.Errorf("reopened: %+v, %v", got, err)
	}
	w.register(r, "run-3", 2)
	var ids []string
	for v, err := range r.Versions(w.ctx, model) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, v.Lineage.Run)
	}
	if fmt.Sprint(ids) != "[run-1 run-3]" {
		t.Errorf("versions in order: %v", ids)
	}
	for name, err := range r.Models(w.ctx) {
		if err != nil || name != model {
			t.Errorf("model %q, %v", name, err)
		}
	}
}

func TestRegisterRefuses(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	change := func(f func(*models.Version)) models.Version { v := draft("run-1"); f(&v); return v }
	good := artifact(t, 1)
	for _, c := range []struct {
		name     string
		draft    models.Version
		artifact []byte
		want     error
	}{
		{"no name", change(func(v *models.Version) { v.Model = "" }), good, models.ErrInvalid},
		{"a long name", change(func(v *models.Version) { v.Model = strings.Repeat("m", 129) }), good, models.ErrInvalid},
		{"unknown format", change(func(v *models.Version) { v.Format = "pickle" }), good, models.ErrInvalid},
		{"no kind", change(func(v *models.Version) { v.Kind = "" }), good, models.ErrInvalid},
		{"no artifact", draft("r"), nil, models.ErrInvalid},
		{"pickle renamed", draft("r"), []byte("\x80\x04\x95\x0b"), models.ErrArtifact},
		{"trailing bytes", draft("r"), append(bytes.Clone(good), 0), models.ErrArtifact},
		{"NaN metric", change(func(v *models.Version) { v.Metrics = map[string]float64{"auc": math.NaN()} }), good, models.ErrMetrics},
		{"infinite metric", change(func(v *models.Version) { v.Metrics = map[string]float64{"auc": math.Inf(-1)} }), good, models.ErrMetrics},
		{"huge description", change(func(v *models.Version) { v.Metadata = map[string]string{"a": strings.Repeat("x", 300<<10)} }), good, models.ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := r.Register(w.ctx, c.draft, c.artifact)
			var me *models.Error
			if !errors.Is(err, c.want) || !errors.As(err, &me) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	v := w.register(r, "run-1", 1)
	if err := r.AddMetrics(w.ctx, model, v.ID, map[string]float64{"auc": math.Inf(1)}); !errors.Is(err, models.ErrMetrics) {
		t.Errorf("infinite metric added: %v", err)
	}
	if err := r.AddMetrics(w.ctx, model, strings.Repeat("0", 64), map[string]float64{"auc": 1}); !errors.Is(err, models.ErrNotFound) {
		t.Errorf("metrics of an absent version: %v", err)
	}
	for id, want := range map[string]error{"abc": models.ErrAmbiguous, "": models.ErrAmbiguous, "ffffffffff": models.ErrNotFound, "../../etc": models.ErrInvalid, strings.Repeat("a", 65): models.ErrInvalid} {
		if v.ID[:min(len(id), 64)] == id {
			continue
		}
		if _, err := r.Get(w.ctx, model, id); !errors.Is(err, want) {
			t.Errorf("get %q: %v, want %v", id, err, want)
		}
	}
}

func TestDeniedRegistrationLeavesNothing(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	w.deny = events.TypeModelRegistered
	if _, err := r.Register(w.ctx, draft("run-1"), artifact(t, 1)); !errors.Is(err, events.ErrDenied) {
		t.Fatalf("got %v", err)
	}
	for v, err := range r.Versions(w.ctx, model) {
		t.Errorf("registered %+v, %v", v, err)
	}
	for _, dir := range []string{w.cfg.Dir, coldRoot(w)} {
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("left %q", got)
		}
	}
}

func coldRoot(w *world) string {
	return strings.TrimSuffix(strings.TrimPrefix(w.cfg.Cold.URI("x"), "file://"), "/x")
}

func files(tb testing.TB, dir string) []string {
	tb.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func TestDamagedArtifacts(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	v := w.register(r, "run-1", 1)
	local := files(t, w.cfg.Dir)[0]
	cold := files(t, coldRoot(w))[0]
	flip := func(path string) {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)-1] ^= 1
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, damage := range map[string]func(){
		"flipped": func() { flip(local) },
		"missing": func() { _ = os.Remove(local) },
		"a link":  func() { _ = os.Remove(local); _ = os.Symlink("/dev/zero", local) },
	} {
		damage()
		if raw, err := r.Artifact(w.ctx, v); err != nil || !bytes.Equal(raw, artifact(t, 1)) {
			t.Errorf("%s: %d bytes, %v", name, len(raw), err)
		}
		if info, err := os.Lstat(local); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: not mended: %v, %v", name, info, err)
		}
	}
	flip(local)
	flip(cold)
	if _, err := r.Artifact(w.ctx, v); !errors.Is(err, models.ErrArtifact) {
		t.Errorf("both damaged: %v", err)
	}
	// Registering it again brings the bytes back.
	w.register(r, "run-1", 1)
	if _, err := r.Artifact(w.ctx, v); err != nil {
		t.Errorf("registered again: %v", err)
	}
	// Without a cold tier the local copy is all there is.
	w.cfg.Cold = nil
	if err := os.Remove(local); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open().Artifact(w.ctx, v); !errors.Is(err, models.ErrNotFound) {
		t.Errorf("no copy anywhere: %v", err)
	}
}

func promotion(v models.Version, previous string) models.Promotion {
	return models.Promotion{Model: model, Alias: models.Champion, ID: v.ID, Previous: previous, Run: v.Lineage.Run, Reason: "better"}
}

func TestPromote(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	a, b := w.register(r, "run-1", 1), w.register(r, "run-2", 2)
	if _, err := r.Alias(w.ctx, model, models.Champion); !errors.Is(err, models.ErrNotFound) {
		t.Errorf("unset alias: %v", err)
	}
	for range 2 {
		if err := r.Promote(w.ctx, promotion(a, "")); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Alias(w.ctx, model, models.Champion); err != nil || got.ID != a.ID || got.Status != models.Promoted || got.Reason != "better" {
		t.Errorf("champion %+v, %v", got, err)
	}
	if err := r.Promote(w.ctx, promotion(b, "")); !errors.Is(err, models.ErrConflict) {
		t.Errorf("promotion over an unexpected champion: %v", err)
	}
	for _, p := range []models.Promotion{promotion(b, a.ID), promotion(a, b.ID), promotion(b, a.ID)} {
		if err := r.Promote(w.ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.published(events.TypeModelPromoted); len(got) != 4 {
		t.Errorf("four moves, announced %v", got)
	}
	missing := promotion(b, b.ID)
	missing.ID = strings.Repeat("0", 64)
	if err := r.Promote(w.ctx, missing); !errors.Is(err, models.ErrNotFound) {
		t.Errorf("promotion of an absent version: %v", err)
	}
	w.deny = events.TypeModelPromoted
	if err := r.Promote(w.ctx, promotion(a, b.ID)); !errors.Is(err, events.ErrDenied) {
		t.Errorf("denied: %v", err)
	}
	if got, err := r.Alias(w.ctx, model, models.Champion); err != nil || got.ID != b.ID {
		t.Errorf("after a denial the champion is %+v, %v", got, err)
	}
	w.deny = ""
	ch := promotion(a, "")
	ch.Alias = models.Challenger
	if err := r.Promote(w.ctx, ch); err != nil {
		t.Error(err)
	}
}

func TestPromoteCompletesWhatWasCutOff(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	v := w.register(r, "run-1", 1)
	cut := errors.New("connection lost")
	models.FailPublish(r, func() error { return cut })
	if err := r.Promote(w.ctx, promotion(v, "")); !errors.Is(err, cut) {
		t.Fatalf("got %v", err)
	}
	if got := w.published(events.TypeModelPromoted); len(got) != 0 {
		t.Fatalf("announced %v", got)
	}
	if err := w.open().Promote(w.ctx, promotion(v, "")); err != nil {
		t.Fatal(err)
	}
	if got := w.published(events.TypeModelPromoted); len(got) != 1 {
		t.Errorf("announced %v", got)
	}
}

func TestPromotersRace(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 6 {
		v := w.register(r, fmt.Sprint("run-", i), float64(i))
		wg.Go(func() {
			err := r.Promote(w.ctx, promotion(v, ""))
			if err != nil && !errors.Is(err, models.ErrConflict) {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			}
		})
	}
	wg.Wait()
	if got := w.published(events.TypeModelPromoted); won != 1 || len(got) != 1 {
		t.Errorf("%d promoters won, announced %v", won, got)
	}
}

func TestRefuse(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	champion, loser := w.register(r, "run-1", 1), w.register(r, "run-2", 2)
	if err := r.Promote(w.ctx, promotion(champion, "")); err != nil {
		t.Fatal(err)
	}
	p := models.Promotion{Model: model, Alias: models.Champion, ID: loser.ID, Previous: champion.ID, Run: "run-2", Reason: "log loss 0.51 is above 0.50"}
	for range 2 {
		if err := r.Refuse(w.ctx, p, "gate/logloss"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Get(w.ctx, model, loser.ID); err != nil || got.Status != models.Refused || got.Reason != p.Reason {
		t.Errorf("loser %+v, %v", got, err)
	}
	if got := w.published(events.TypeModelRefused); len(got) != 1 {
		t.Errorf("announced %v", got)
	}
	p.ID = champion.ID
	if err := r.Refuse(w.ctx, p, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Get(w.ctx, model, champion.ID); err != nil || got.Status != models.Promoted {
		t.Errorf("the champion, refused as a challenger of its own: %+v, %v", got, err)
	}
}

func TestWatchAlias(t *testing.T) {
	w := newWorld(t)
	r := w.open()
	a, b := w.register(r, "run-1", 1), w.register(r, "run-2", 2)
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	seen := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- r.WatchAlias(ctx, model, models.Champion, func(v models.Version) { seen <- v.ID })
	}()
	expect := func(want models.Version) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want.ID {
				t.Fatalf("saw %.12s, want %s", got, want.Short())
			}
		case <-w.ctx.Done():
			t.Fatal("saw nothing")
		}
	}
	if err := r.Promote(w.ctx, promotion(a, "")); err != nil {
		t.Fatal(err)
	}
	expect(a)
	if err := w.open().Promote(w.ctx, promotion(b, a.ID)); err != nil {
		t.Fatal(err)
	}
	expect(b)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ended with %v", err)
	}
	// One that begins later sees the present champion.
	ctx, cancel = context.WithCancel(w.ctx)
	defer cancel()
	err := r.WatchAlias(ctx, model, models.Champion, func(v models.Version) { seen <- v.ID; cancel() })
	if err != nil {
		t.Error(err)
	}
	expect(b)
}

func TestOpenNamesEveryFault(t *testing.T) {
	_, err := models.Open(context.Background(), models.Config{Prefix: "a b"})
	for _, want := range []string{"Conn", "Bus", "Dir", "Prefix"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
