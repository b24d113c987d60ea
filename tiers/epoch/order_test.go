package epoch_test

import (
	"math"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/tiers/epoch"
)

func TestOrdersArePermutations(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := epoch.Order{
			Kind: rapid.SampledFrom([]epoch.Kind{"", epoch.Sequential, epoch.Shuffled, epoch.Windowed}).Draw(t, "kind"),
			Seed: rapid.Uint64().Draw(t, "seed"),
		}
		if o.Kind == epoch.Windowed {
			o.Window = rapid.Uint64Range(2, 300).Draw(t, "window")
		}
		e, n := rapid.Uint64().Draw(t, "epoch"), rapid.Uint64Range(1, 3000).Draw(t, "n")
		seen := make([]bool, n)
		for i := range n {
			at := o.At(e, n, i)
			if at >= n || seen[at] {
				t.Fatalf("%+v: place %d of %d is %d, twice or outside", o, i, n, at)
			}
			seen[at] = true
			if back := o.Place(e, n, at); back != i {
				t.Fatalf("%+v: batch %d of %d is visited at place %d, Place says %d", o, at, n, i, back)
			}
			if o.Kind == epoch.Windowed && at/o.Window != i/o.Window {
				t.Fatalf("%+v: place %d of %d is %d, of another window", o, i, n, at)
			}
		}
	})
}

// TestOrderStays: positions are kept for longer than a version of this package.
func TestOrderStays(t *testing.T) {
	for _, tc := range []struct {
		order epoch.Order
		n     uint64
		want  []uint64
	}{
		{epoch.Order{}, 4, []uint64{0, 1, 2, 3}},
		{epoch.Order{Kind: epoch.Shuffled, Seed: 7}, 10, []uint64{1, 9, 8, 0, 4, 2, 3, 7, 5, 6}},
		{epoch.Order{Kind: epoch.Windowed, Seed: 7, Window: 4}, 10, []uint64{1, 3, 2, 0, 7, 5, 6, 4, 8, 9}},
		{epoch.Order{Kind: epoch.Shuffled, Seed: 7}, 1 << 40, []uint64{0x61bb088a4d, 0x412a1ab353, 0x75b53f051c, 0xbb2ab57afd}},
	} {
		for i, want := range tc.want {
			if got := tc.order.At(3, tc.n, uint64(i)); got != want {
				t.Errorf("%+v: place %d of %d is %d, was %d", tc.order, i, tc.n, got, want)
			}
		}
	}
}

// TestShuffleIsEven: over many seeds each batch comes to each place equally often,
// and so does each order of few. Chi-squared within five standard deviations.
func TestShuffleIsEven(t *testing.T) {
	const trials = 5_000
	even := func(what string, counts map[uint64]int, cells int) {
		t.Helper()
		expected := float64(trials) / float64(cells)
		chi := float64(cells-len(counts)) * expected
		for _, c := range counts {
			chi += (float64(c) - expected) * (float64(c) - expected) / expected
		}
		free := float64(cells - 1)
		if math.Abs(chi-free) > 5*math.Sqrt(2*free) {
			t.Errorf("%s: chi-squared %.1f with %d degrees of freedom", what, chi, cells-1)
		}
	}
	for _, n := range []uint64{2, 3, 4, 10, 33} {
		for _, place := range []uint64{0, n / 2, n - 1} {
			at := map[uint64]int{}
			for seed := range uint64(trials) {
				at[epoch.Order{Kind: epoch.Shuffled, Seed: seed}.At(1, n, place)]++
			}
			even("place", at, int(n))
		}
	}
	orders, epochs := map[uint64]int{}, map[uint64]int{}
	for seed := range uint64(trials) {
		var bySeed, byEpoch uint64
		for i := range uint64(4) {
			bySeed = bySeed*4 + epoch.Order{Kind: epoch.Shuffled, Seed: seed}.At(0, 4, i)
			byEpoch = byEpoch*4 + epoch.Order{Kind: epoch.Shuffled}.At(seed, 4, i)
		}
		orders[bySeed]++
		epochs[byEpoch]++
	}
	even("orders of four, by seed", orders, 24)
	even("orders of four, by epoch", epochs, 24)
}

func BenchmarkAt(b *testing.B) {
	o := epoch.Order{Kind: epoch.Shuffled, Seed: 1}
	const n = 1_000_000
	i := uint64(0)
	for b.Loop() {
		o.At(1, n, i%n)
		i++
	}
}
