package parquet

import (
	"bytes"
	"hash/maphash"
	"math/bits"
	"slices"
)

const (
	maxDictEntries = 1 << 16
	sampleValues   = 1024
)

// dictionaryBuilder finds the distinct values of a column in order of their first
// appearance, which the hashes do not influence: the same batch gives the same
// file.
type dictionaryBuilder struct {
	seed  maphash.Seed
	table []int32 // index of an entry plus 1, 0 for none
	first []int32 // of each entry, the position of its first appearance
	hash  []uint64
	index []int32
}

// pays guesses from a sample whether a dictionary would.
func (b *dictionaryBuilder) pays(d *dense) bool {
	if d.n < 8 || d.bits != nil {
		return false
	}
	step := max(1, d.n/sampleValues)
	tried, distinct := 0, 0
	b.reset(2 * sampleValues)
	for i := 0; i < d.n && tried < sampleValues; i += step {
		tried++
		if _, isNew := b.add(d, i); isNew {
			distinct++
		}
	}
	return distinct*2 <= tried
}

func (b *dictionaryBuilder) reset(entries int) {
	size := 1 << bits.Len(uint(2*entries-1))
	b.table = grown(b.table, size)
	clear(b.table)
	b.first, b.hash = b.first[:0], b.hash[:0]
}

func (b *dictionaryBuilder) hashOf(d *dense, i int) uint64 {
	switch {
	case d.ends != nil:
		return maphash.Bytes(b.seed, d.value(i))
	case d.width == 8:
		h := little.Uint64(d.fixed[8*i:]) * 0x9E3779B97F4A7C15
		return h ^ h>>32
	case d.width == 4:
		h := uint64(little.Uint32(d.fixed[4*i:])) * 0x9E3779B97F4A7C15
		return h ^ h>>32
	default:
		return maphash.Bytes(b.seed, d.fixed[d.width*i:d.width*(i+1)])
	}
}

func equal(d *dense, i, j int) bool {
	switch {
	case d.ends != nil:
		return bytes.Equal(d.value(i), d.value(j))
	case d.width == 8:
		return little.Uint64(d.fixed[8*i:]) == little.Uint64(d.fixed[8*j:])
	case d.width == 4:
		return little.Uint32(d.fixed[4*i:]) == little.Uint32(d.fixed[4*j:])
	default:
		return bytes.Equal(d.fixed[d.width*i:d.width*(i+1)], d.fixed[d.width*j:d.width*(j+1)])
	}
}

func (b *dictionaryBuilder) add(d *dense, i int) (entry int32, isNew bool) {
	h := b.hashOf(d, i)
	mask := uint64(len(b.table) - 1)
	for at := h & mask; ; at = (at + 1) & mask {
		e := b.table[at]
		if e == 0 {
			b.first, b.hash = append(b.first, int32(i)), append(b.hash, h)
			b.table[at] = int32(len(b.first))
			return int32(len(b.first) - 1), true
		}
		if b.hash[e-1] == h && equal(d, int(b.first[e-1]), i) {
			return e - 1, false
		}
	}
}

// build gives each value the index of its entry, or reports that a dictionary does
// not pay after all: it has more than limit bytes, or half as many entries as there
// are values.
func (b *dictionaryBuilder) build(d *dense, limit int64) bool {
	entries := min(maxDictEntries, d.n/2+1)
	b.reset(256)
	b.index = grown(b.index, d.n)
	size := int64(0)
	for i := range d.n {
		if i > 0 && equal(d, i-1, i) {
			b.index[i] = b.index[i-1]
			continue
		}
		e, isNew := b.add(d, i)
		b.index[i] = e
		if !isNew {
			continue
		}
		size += d.plainBytes(i, i+1)
		if len(b.first) > entries || size > limit {
			return false
		}
		if 2*len(b.first) > len(b.table) {
			b.grow()
		}
	}
	return size+int64(d.n)*int64(bits.Len(uint(len(b.first))))/8 < d.plainBytes(0, d.n)
}

func (b *dictionaryBuilder) grow() {
	b.table = grown(b.table, 4*len(b.table))
	clear(b.table)
	mask := uint64(len(b.table) - 1)
	for e, h := range b.hash {
		at := h & mask
		for b.table[at] != 0 {
			at = (at + 1) & mask
		}
		b.table[at] = int32(e + 1)
	}
}

// entries appends the dictionary's values in PLAIN encoding.
func (b *dictionaryBuilder) entries(out []byte, d *dense) []byte {
	for _, i := range b.first {
		out = appendPlain(out, d, int(i), int(i)+1)
	}
	return out
}

// appendPlain appends values in PLAIN encoding.
func appendPlain(out []byte, d *dense, from, to int) []byte {
	if d.ends == nil {
		return append(out, d.fixed[d.width*from:d.width*to]...)
	}
	out = slices.Grow(out, int(d.plainBytes(from, to)))
	for i := from; i < to; i++ {
		v := d.value(i)
		out = little.AppendUint32(out, uint32(len(v)))
		out = append(out, v...)
	}
	return out
}
