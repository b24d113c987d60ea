package shm

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestSpaceAgainstModel holds the allocator to a plain list of what is taken:
// nothing overlaps, everything is aligned, a request fails only if no free piece
// is large enough, and what was given back is one piece with its neighbours.
func TestSpaceAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 4096).Draw(t, "lines") * Alignment
		var s space
		s.reset(size)
		type held struct {
			part          int32
			offset, bytes int64
		}
		var taken []held
		sorted := func() []held {
			all := slices.Clone(taken)
			slices.SortFunc(all, func(a, b held) int { return int(a.offset - b.offset) })
			return all
		}
		// pieces are the gaps of the model.
		pieces := func() (sizes []int64) {
			at := int64(0)
			for _, h := range append(sorted(), held{offset: size}) {
				if h.offset > at {
					sizes = append(sizes, h.offset-at)
				}
				at = h.offset + h.bytes
			}
			return sizes
		}
		pick := func(t *rapid.T) int {
			if len(taken) == 0 {
				t.Skip("nothing is taken")
			}
			return rapid.IntRange(0, len(taken)-1).Draw(t, "which")
		}
		lines := rapid.Custom(func(t *rapid.T) int64 {
			most := rapid.SampledFrom([]int64{4, 64, size / Alignment}).Draw(t, "up to")
			return rapid.Int64Range(1, max(most, 1)).Draw(t, "lines") * Alignment
		})
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				n := lines.Draw(t, "bytes")
				largest := s.largest()
				i := s.take(n)
				if (i != 0) != (n <= largest) {
					t.Fatalf("take %d gave %d where the largest free piece has %d", n, i, largest)
				}
				if i != 0 {
					taken = append(taken, held{i, s.parts[i].offset, n})
				}
			},
			"give": func(t *rapid.T) {
				k := pick(t)
				s.give(taken[k].part)
				taken = slices.Delete(taken, k, k+1)
			},
			"resize": func(t *rapid.T) {
				k := pick(t)
				h := &taken[k]
				n := lines.Draw(t, "bytes")
				end := size
				for _, o := range taken {
					if o.offset > h.offset {
						end = min(end, o.offset)
					}
				}
				if ok := s.resize(h.part, n); ok != (h.offset+n <= end) {
					t.Fatalf("resize %d+%d to %d: %v, the next one begins at %d", h.offset, h.bytes, n, ok, end)
				} else if ok {
					h.bytes = n
				}
			},
			"": func(t *rapid.T) {
				used, end := int64(0), int64(0)
				for _, h := range sorted() {
					p := s.parts[h.part]
					if p.free || p.offset != h.offset || p.bytes != h.bytes {
						t.Fatalf("%+v is booked as %+v", h, p)
					}
					if h.offset%Alignment != 0 || h.offset < end || h.offset+h.bytes > size {
						t.Fatalf("%+v is out of place: the one before ends at %d of %d", h, end, size)
					}
					used += h.bytes
					end = h.offset + h.bytes
				}
				gaps := pieces()
				largest := int64(0)
				if len(gaps) > 0 {
					largest = slices.Max(gaps)
				}
				if s.free != size-used || s.count != len(gaps) || s.largest() != largest || s.top() != end {
					t.Fatalf("free %d in %d pieces, largest %d, top %d; want %d in %d, %d, %d",
						s.free, s.count, s.largest(), s.top(), size-used, len(gaps), largest, end)
				}
				sum := int64(0)
				for _, c := range s.byPower() {
					sum += c.TakenSize + c.FreeSize
				}
				if sum != size {
					t.Fatalf("the classes add up to %d of %d", sum, size)
				}
			},
		})
		for _, h := range taken {
			s.give(h.part)
		}
		if s.count != 1 || s.largest() != size {
			t.Fatalf("%d pieces, the largest of %d, when all of %d is free", s.count, s.largest(), size)
		}
	})
}

func TestSpaceTakesNoMemoryWhenWarm(t *testing.T) {
	var s space
	s.reset(1 << 20)
	step := func() {
		a, b, c := s.take(640), s.take(1<<16), s.take(64)
		s.give(b)
		d := s.take(1 << 12)
		s.give(a)
		s.give(c)
		s.give(d)
	}
	step()
	if n := testing.AllocsPerRun(100, step); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSpaceReusesWhatWasFreedLast holds that warm memory goes out first.
func TestSpaceReusesWhatWasFreedLast(t *testing.T) {
	var s space
	s.reset(1 << 20)
	var parts [8]int32
	for i := range parts {
		parts[i] = s.take(4096)
	}
	for _, i := range []int{1, 5, 3} {
		s.give(parts[i])
	}
	for _, want := range []int64{3, 5, 1, 8} {
		if i := s.take(4096); s.parts[i].offset != want*4096 {
			t.Errorf("got the block at %d, want %d", s.parts[i].offset, want*4096)
		}
	}
}

func BenchmarkSpace(b *testing.B) {
	var s space
	s.reset(1 << 30)
	var held [512]int32
	for i := range held {
		held[i] = s.take(int64(1+i%37) * 4096)
	}
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		i := n * 31 % len(held)
		s.give(held[i])
		held[i] = s.take(int64(1+n%41) * 4096)
	}
}
