package tiers_test

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/internal/smalldisk"
	"github.com/stokehold/stokehold/tiers"
)

// A second catalog neither stores nor removes anything in a cold tier that the first
// has claimed, until it takes over; then the first does not.
func TestTwoCatalogsOnOneColdTier(t *testing.T) {
	first, second := newWorld(t), newWorld(t)
	second.cold = first.cold
	s, _ := first.store(0)
	first.write(first.writer(s, dataset, fence("run-1", 1)), 0, 1)
	if _, err := s.Move(first.ctx, tiers.Migration{Dataset: dataset, Evict: true}, nil); err != nil {
		t.Fatal(err)
	}
	before := files(t, first.cold)
	age(t, first.cold, 1000*tiers.MinGrace)

	other, _ := second.store(0)
	second.write(second.writer(other, dataset, fence("run-2", 1)), 0)
	refused := func(err error) {
		t.Helper()
		var owned *tiers.OwnedError
		if !errors.As(err, &owned) || !errors.Is(err, tiers.ErrOwned) || !strings.Contains(err.Error(), "use another bucket") {
			t.Errorf("got %v, want ErrOwned", err)
		}
	}
	_, err := other.Move(second.ctx, tiers.Migration{Dataset: dataset}, nil)
	refused(err)
	if at := tiersOf(mustRef(t, second, other, 0)); at != string(arrowio.Warm) {
		t.Errorf("the refused batch is in %s", at)
	}
	// What it would take for orphans is the first's.
	for _, remove := range []bool{false, true} {
		refused(other.Collect(second.ctx, 0, remove, func(tiers.Orphan) error { return nil }))
	}
	if got := files(t, first.cold); len(before) != 1 || len(got) != 1 || got[0] != before[0] {
		t.Errorf("objects %q, before %q", got, before)
	}
	readable(t, first, s, arrowio.Cold)

	if err := other.TakeOverCold(second.ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Move(second.ctx, tiers.Migration{Dataset: dataset}, nil); err != nil {
		t.Errorf("after taking over: %v", err)
	}
	again, _ := first.store(0)
	_, err = again.Move(first.ctx, tiers.Migration{Dataset: dataset, Sequence: 1}, nil)
	refused(err)
}

// A catalog is one deployment, whoever opens it.
func TestStoresOfACatalogShareItsColdTier(t *testing.T) {
	w := newWorld(t)
	one, _ := w.store(0)
	two, _ := w.store(0)
	w.write(w.writer(one, dataset, fence("run-1", 1)), 0, 1)
	for seq, s := range []*tiers.Store{one, two} {
		if _, err := s.Move(w.ctx, tiers.Migration{Dataset: dataset, Sequence: uint64(seq)}, nil); err != nil {
			t.Error(err)
		}
	}
	if err := two.Collect(w.ctx, 0, true, func(tiers.Orphan) error { return nil }); err != nil {
		t.Error(err)
	}
}

// A write to a full disk fails, leaves nothing and succeeds once there is room.
func TestWriteToAFullDisk(t *testing.T) {
	w := newWorld(t)
	s, _ := w.store(8 << 20) // room in the hot tier is not enough: a batch must be on disk
	wr := w.writer(s, dataset, fence("run-1", 1))
	rec := batch(0, 100_000)
	defer rec.Release()
	full := filepath.Join(w.warm, ".stage")
	unmount := smalldisk.Mount(t, full, 64<<10)
	_, err := wr.WriteAt(w.ctx, 0, rec)
	left := files(t, full)
	unmount()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v", err)
	}
	if head, err := s.Head(w.ctx, dataset); err != nil || head.Next != 0 || len(left) != 0 {
		t.Errorf("%+v, files %q, %v", head, left, err)
	}
	if _, err := wr.WriteAt(w.ctx, 0, rec); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	b, err := s.OpenBatch(w.ctx, mustRef(t, w, s, 0), false)
	if err != nil {
		t.Fatal(err)
	}
	same(t, b.Record, 0, 100_000)
	b.Release()
}
