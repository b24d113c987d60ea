package epoch

import (
	"fmt"
	"math/bits"
)

// Kind says how an Order permutes.
type Kind string

const (
	// Sequential is the order in which the dataset was written, in every epoch.
	Sequential Kind = "sequential"
	// Shuffled is another permutation of all batches in each epoch.
	Shuffled Kind = "shuffled"
	// Windowed permutes the batches within windows of consecutive ones, and leaves
	// the windows in sequence: batches that were written together are read together.
	Windowed Kind = "windowed"
)

// Order says in which order epochs visit the batches of a dataset. The same order
// gives the same permutation everywhere and in every version of this package.
type Order struct {
	Kind   Kind   `json:"kind,omitempty"` // default Sequential
	Seed   uint64 `json:"seed,omitempty"`
	Window uint64 `json:"window,omitempty"` // batches; Windowed only, at least 2
}

func (o Order) check() error {
	switch {
	case o.Kind == "" || o.Kind == Sequential || o.Kind == Shuffled:
		if o.Window != 0 {
			return fmt.Errorf("%w: a window of %d batches means something with kind %q only", ErrConfig, o.Window, Windowed)
		}
		return nil
	case o.Kind != Windowed:
		return fmt.Errorf("%w: order %.40q: want %q, %q or %q", ErrConfig, o.Kind, Sequential, Shuffled, Windowed)
	case o.Window < 2:
		return fmt.Errorf("%w: a window of %d batches: want at least 2", ErrConfig, o.Window)
	}
	return nil
}

// At returns which of n batches an epoch visits as the i-th, from 0. i < n.
func (o Order) At(epoch, n, i uint64) uint64 {
	switch o.Kind {
	case Shuffled:
		return permute(key(o.Seed, epoch, 0), n, i)
	case Windowed:
		first := i - i%o.Window
		return first + permute(key(o.Seed, epoch, first), min(o.Window, n-first), i-first)
	default:
		return i
	}
}

// Place is the inverse of At: when, counted from 0, an epoch visits the i-th of n
// batches. i < n.
func (o Order) Place(epoch, n, i uint64) uint64 {
	switch o.Kind {
	case Shuffled:
		return unpermute(key(o.Seed, epoch, 0), n, i)
	case Windowed: // whose windows stay where they are
		first := i - i%o.Window
		return first + unpermute(key(o.Seed, epoch, first), min(o.Window, n-first), i-first)
	default:
		return i
	}
}

// key makes a permutation's key of what it depends on.
func key(seed, epoch, first uint64) uint64 { return mix(mix(mix(seed)^epoch) ^ first) }

// smallest is the least domain that is permuted, in bits of a half. In smaller ones a
// Feistel network has too few permutations.
const smallest = 5

// rounds of the Feistel network. Four make a pseudorandom permutation if the round
// function is one (Luby and Rackoff, "How to construct pseudorandom permutations
// from pseudorandom functions", SIAM J. Comput. 17, 1988); more make up for ours,
// which only mixes well.
const rounds = 6

// permute is a pseudorandom permutation of 0..n-1 that needs no memory: a balanced
// Feistel network on the next even power of two, walked along its cycles until it
// is back within the domain (Black and Rogaway, "Ciphers with arbitrary finite
// domains", CT-RSA 2002). That takes fewer than four steps on average for n over
// 256, and at most 2^10/n on average below.
func permute(key, n, i uint64) uint64 {
	if n < 2 {
		return 0
	}
	half, mask := domain(n)
	for {
		l, r := i>>half, i&mask
		for round := range uint64(rounds) {
			l, r = r, l^(mix(key^mix(r+round<<32+1))&mask)
		}
		if i = l<<half | r; i < n {
			return i
		}
	}
}

// unpermute is the inverse of permute: the same walk backwards.
func unpermute(key, n, i uint64) uint64 {
	if n < 2 {
		return 0
	}
	half, mask := domain(n)
	for {
		l, r := i>>half, i&mask
		for round := range uint64(rounds) {
			l, r = r^(mix(key^mix(l+(rounds-1-round)<<32+1))&mask), l
		}
		if i = l<<half | r; i < n {
			return i
		}
	}
}

// domain is what a permutation of n walks in: so many bits of each half.
func domain(n uint64) (half uint, mask uint64) {
	half = uint(max((bits.Len64(n-1)+1)/2, smallest))
	return half, uint64(1)<<half - 1
}

// mix is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable
// pseudorandom number generators", OOPSLA 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
