package stages_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
)

// TestStagesAnnounceWhatTheyReadAndWhere: who manages the tiers in another process
// knows which batch a stage comes to, in which order, and what the next will read.
func TestStagesAnnounceWhatTheyReadAndWhere(t *testing.T) {
	w := newWorld(t, events.AllowAll())
	keeping := w.process().Store
	w.process().fill("in", 12, 10)
	// told waits until what owner has announced of "in" is as it should be.
	told := func(ctx context.Context, owner string, ok func(*tiers.Reads) bool) error {
		for ctx.Err() == nil {
			all, err := keeping.Leases(ctx, "in")
			if err != nil {
				return err
			}
			for _, l := range all {
				if l.Owner == owner && l.Reads != nil && ok(l.Reads) {
					return nil
				}
			}
			select {
			case <-time.After(20 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		return fmt.Errorf("%s does not announce what it reads: %w", owner, ctx.Err())
	}
	for name, stage := range map[string]stages.Func{
		"sequence": func(ctx context.Context, task *stages.Task) error {
			for b, err := range task.Batches(ctx) {
				if err != nil {
					return err
				}
				if b.Ref.Sequence == 4 {
					return told(ctx, "read-sequence/sequence", func(r *tiers.Reads) bool { return r.At == 4 && r.To == tiers.End && r.Order == nil })
				}
			}
			return nil
		},
		"epochs": func(ctx context.Context, task *stages.Task) error {
			d, err := task.Epochs(ctx, "in", epoch.Config{Order: epoch.Order{Kind: epoch.Shuffled, Seed: 7}})
			if err != nil {
				return err
			}
			for b, err := range d.Epoch(ctx, 0) {
				if err != nil {
					return err
				}
				if b.Number == 4 {
					return told(ctx, "read-epochs/epochs", func(r *tiers.Reads) bool { return r.At == 4 && r.To == 12 && r.Order != nil })
				}
			}
			return nil
		},
		"later": func(ctx context.Context, _ *stages.Task) error {
			return told(ctx, "read-later/after", func(r *tiers.Reads) bool { return r.At == 0 && r.Later })
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := reader(name, false)
			a.Upcoming = []stages.Upcoming{{Stage: "after", Input: stages.Binding{Name: "in", Dataset: "in"}}}
			if _, err := w.process().Execute(w.ctx, stage, a, stages.Hooks{}); err != nil {
				t.Fatal(err)
			}
		})
	}
	// With the stages it ends.
	if !within(10*time.Second, func() bool {
		all, err := keeping.Leases(w.ctx, "in")
		return err == nil && len(all) == 0
	}) {
		t.Error("leases are left")
	}
}
