package epoch_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/epoch"
)

// telling is a store that keeps what was announced.
type telling struct {
	*tiers.Store
	told []tiers.Reads
}

func (s *telling) Announce(_, _ string, reads tiers.Reads) *tiers.Announced {
	s.told = append(s.told, reads)
	return nil
}

// From what a reader announces its order can be foretold, in this epoch and the next.
func TestForecast(t *testing.T) {
	w := newWorld(t, 1, 1, 1, 1, 1, 1, 1, 1)
	s := &telling{Store: w.store}
	order := epoch.Order{Kind: epoch.Shuffled, Seed: 7}
	for name, c := range map[string]struct {
		rows int64
		from uint64 // of 6 batches: at which place it begins
	}{
		"from the start": {}, "taken up again": {from: 4}, "put together": {rows: 2}, "put together, taken up again": {rows: 2, from: 4},
	} {
		d, err := epoch.Open(t.Context(), s, dataset, epoch.Config{Order: order, From: 1, To: 7, BatchRows: c.rows})
		if err != nil {
			t.Fatal(err)
		}
		p, s0 := d.Start(3), len(s.told)
		for b, err := range d.Epoch(t.Context(), 3) {
			if err != nil {
				t.Fatal(err)
			}
			if p.Place >= c.from && p.Next >= c.from {
				break
			}
			if p = b.Next; c.rows > 0 && p.Place >= c.from {
				break
			}
		}
		for range d.Resume(t.Context(), p) {
			break
		}
		if len(s.told) != s0+2 {
			t.Fatalf("%s: %+v is announced", name, s.told[s0:])
		}
		reads := s.told[s0+1]
		if reads.At != c.from || reads.To != 6 {
			t.Errorf("%s: %+v", name, reads)
		}
		reads.PerSecond = 2
		until, err := epoch.Forecast(reads)
		if err != nil {
			t.Fatal(err)
		}
		for place := range uint64(6) {
			seq := 1 + order.At(3, 6, place)
			want := time.Duration(0)
			switch {
			case place < c.from: // it comes again in the next
				want = time.Duration(6-c.from+order.Place(4, 6, seq-1)) * time.Second / 2
			case place > c.from:
				want = time.Duration(place-c.from) * time.Second / 2
			}
			if got, ok := until(seq); !ok || got != want {
				t.Errorf("%s: batch %d at place %d in %v, %t, want %v", name, seq, place, got, ok, want)
			}
		}
		for _, seq := range []uint64{0, 7, tiers.End} {
			if _, ok := until(seq); ok {
				t.Errorf("%s: batch %d is not of it", name, seq)
			}
		}
	}
}

func TestForecastOfNonsense(t *testing.T) {
	for _, order := range []string{"{", `{"order":{"kind":"spiral"},"batches":9}`, `{"order":{"kind":"windowed"},"batches":9}`} {
		if _, err := epoch.Forecast(tiers.Reads{To: 9, Order: json.RawMessage(order)}); !errors.Is(err, epoch.ErrConfig) {
			t.Errorf("%s: %v", order, err)
		}
	}
	until, err := epoch.Forecast(tiers.Reads{To: 9, Order: json.RawMessage(`{"order":{"kind":"shuffled"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := until(0); ok {
		t.Error("of no batches one is needed")
	}
}
