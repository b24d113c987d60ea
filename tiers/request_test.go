package tiers_test

import (
	"errors"
	"testing"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/label"
	"github.com/stokehold/stokehold/tiers"
)

// A migration is judged as a whole by what is stored of its dataset, and published once.
func TestMigrationRequest(t *testing.T) {
	w := newWorld(t)
	w.judge = engine(t, &governance.MemoryLog{})
	w.set = func(cfg *tiers.Config) {
		cfg.ColdPlace, cfg.Place = events.Place{Region: "eu"}, events.Place{Region: "us"}
	}
	s, _ := w.store(0)
	wr := w.writer(s, dataset, fence("run-1", 1))
	must(t, wr.Label(label.Set{"residency:eu"}))
	w.write(wr, 0)
	ask := tiers.MigrationRequest{ID: "migrate/1", Dataset: dataset, From: 2, To: 5, Reason: "age/old", Actor: "ann"}
	for range 2 {
		must(t, s.RequestMigration(w.ctx, ask))
	}
	got := 0
	for d, err := range w.bus.Replay(w.ctx, events.Subscription{Types: []string{events.TypeMigrationRequested}}) {
		must(t, err)
		got++
		var data events.TierMigrationRequested
		must(t, d.DataAs(&data))
		if data.First != 2 || data.Batches != 3 || data.From != "warm" || data.To != "cold" || data.Reason != "age/old" || data.Place == nil || data.Place.Region != "eu" ||
			len(data.Labels) != 1 || d.Extensions()[events.ExtActor] != "ann" || d.Extensions()[events.ExtLabels] != "residency:eu" || d.ID() != "migrate/1" {
			t.Errorf("%+v %v", data, d.Extensions())
		}
	}
	if got != 1 {
		t.Errorf("published %d times", got)
	}
	for name, c := range map[string]struct {
		change func(*tiers.MigrationRequest)
		want   error
	}{
		"to where the labels forbid": {func(r *tiers.MigrationRequest) { r.Tier = arrowio.Warm }, events.ErrDenied},
		"of no such dataset":         {func(r *tiers.MigrationRequest) { r.Dataset = "no/such" }, tiers.ErrNotFound},
		"of nothing":                 {func(r *tiers.MigrationRequest) { r.To = r.From }, tiers.ErrMigration},
		"without a name":             {func(r *tiers.MigrationRequest) { r.ID = "" }, tiers.ErrMigration},
		"to no tier":                 {func(r *tiers.MigrationRequest) { r.Tier = arrowio.Hot }, tiers.ErrMigration},
		"that evicts to warm":        {func(r *tiers.MigrationRequest) { r.Tier, r.Evict = arrowio.Warm, true }, tiers.ErrMigration},
	} {
		r := ask
		r.ID += name
		c.change(&r)
		if err := s.RequestMigration(w.ctx, r); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
