package parquet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/parquet-go/parquet-go/format"
)

// chunkEntries is how many entries are decoded at once: their levels stay in the
// processor's cache.
const chunkEntries = 4096

// columnReader reads a leaf of one row group after the other, some rows at a time.
type columnReader struct {
	node    *node
	pages   pageReader
	budget  *budget
	options *ScanOptions

	groupRows, values, compressed int64 // what the footer says of the chunk

	// Levels that were decoded and belong to rows not yet asked for.
	defs, reps []byte
	full       bool // all of defs are the greatest
	defBuf     [chunkEntries]byte
	repBuf     [chunkEntries]byte
	flags      [chunkEntries]byte // of slots: 1 if there is a value

	// The batch being read.
	rows         int
	slots, nulls int
	bits         []byte // validity, nil while there are no nulls
	def, rep     []byte // levels of all entries, if somebody above needs them
	keepLevels   bool
	fixed        []byte
	data         []byte
	ends         []int64
	index        []int32
	taken        int64 // of the budget

	// Of a dictionary column.
	known   map[string]int32
	dict    entries
	dictLen int
	from    *dictionaryPage // that dict and its numbering are
}

// layout is how a column's values lie in memory.
type layout uint8

const (
	layoutFixed layout = iota
	layoutBool
	layoutBytes
	layoutDictionary
	layoutNull
)

func layoutOf(n *node) layout {
	switch {
	case n.dt.ID() == arrow.DICTIONARY:
		return layoutDictionary
	case n.dt.ID() == arrow.NULL:
		return layoutNull
	case n.storage.physical == format.Boolean:
		return layoutBool
	case n.storage.physical == format.ByteArray:
		return layoutBytes
	default:
		return layoutFixed
	}
}

// begin starts on a row group's chunk.
func (c *columnReader) begin(n *node, k *chunk, rows int64, src io.ReaderAt, b *budget) error {
	c.node, c.budget = n, b
	c.groupRows, c.values, c.compressed = rows, k.values, k.compressed
	c.keepLevels = len(n.path) > 1
	c.defs, c.reps = nil, nil
	c.from, c.dict, c.dictLen, c.known = nil, entries{}, 0, nil
	return c.pages.open(n, k, src, b)
}

// clear starts a batch, with room for as many rows as the rest of the chunk may
// have. The memory of the one before is the caller's.
func (c *columnReader) clear(rows int) {
	c.rows = rows
	c.slots, c.nulls, c.taken = 0, 0, 0
	c.bits, c.def, c.rep, c.fixed, c.data, c.ends, c.index = nil, nil, nil, nil, nil, nil, nil
	// The footer may lie; what it says of a chunk is believed as far as its size
	// makes that likely.
	likely := int64(rows)
	if c.node.maxRep() > 0 && c.groupRows > 0 {
		likely = int64(float64(c.values) / float64(c.groupRows) * float64(rows))
	}
	likely = max(0, min(likely, 64*c.compressed+1024, c.budget.limit/16))
	if c.keepLevels {
		c.def = make([]byte, 0, likely)
		if c.node.maxRep() > 0 {
			c.rep = make([]byte, 0, likely)
		}
	}
	switch layoutOf(c.node) {
	case layoutFixed:
		w := int64(max(1, arrowWidth(c.node.dt)))
		c.fixed = c.options.bytes(w * min(likely, (256*c.compressed+1<<16)/w))
	case layoutBytes:
		c.ends = append(make([]int64, 0, likely+1), 0)
	case layoutDictionary:
		c.index = make([]int32, 0, likely)
	default:
	}
}

// read reads that many rows.
func (c *columnReader) read(rows int) error {
	c.clear(rows)
	if c.node.maxRep() > 0 {
		return c.readNested(rows)
	}
	for rows > 0 {
		if c.pages.left == 0 {
			if err := c.nextPage(); err != nil {
				return err
			}
		}
		n, err := c.readFlat(min(rows, c.pages.left))
		if err != nil {
			return err
		}
		rows -= n
		c.pages.left -= n
	}
	return nil
}

func (c *columnReader) nextPage() error {
	err := c.pages.next()
	if errors.Is(err, io.EOF) {
		return errors.New("fewer values than the row group has rows")
	}
	return err
}

func (c *columnReader) take(bytes int64) error {
	c.taken += bytes
	return c.budget.take(c.node, bytes)
}

// readFlat reads up to n entries, a row each, of the current page.
func (c *columnReader) readFlat(n int) (int, error) {
	greatest := c.node.def
	if greatest == 0 {
		n = min(n, 16*chunkEntries)
		return n, c.append(n, n, nil)
	}
	if k, err := c.pages.def.same(greatest, min(n, 16*chunkEntries)); err != nil || k > 0 {
		if err != nil {
			return 0, err
		}
		if c.keepLevels {
			if err := c.take(int64(k)); err != nil {
				return 0, err
			}
			c.def = appendRepeated(c.def, greatest, k)
		}
		return k, c.append(k, k, nil)
	}
	n = min(n, chunkEntries)
	defs := c.defBuf[:n]
	if err := c.pages.def.levels(defs, greatest); err != nil {
		return 0, err
	}
	return n, c.appendLevels(defs, nil)
}

// readNested reads whole rows.
func (c *columnReader) readNested(rows int) error {
	begun := 0
	for {
		if len(c.defs) == 0 {
			if c.pages.left == 0 {
				if begun == rows && c.pages.entries == 0 {
					break
				}
				if err := c.nextPage(); err != nil {
					return err
				}
			}
			if err := c.decodeLevels(); err != nil {
				return err
			}
		}
		// As far as the row after the last that is wanted.
		n := 0
		for n < len(c.reps) {
			next := bytes.IndexByte(c.reps[n:], 0)
			if next < 0 {
				n = len(c.reps)
				break
			}
			if n += next; begun == rows {
				break
			}
			begun++
			n++
		}
		if len(c.rep) == 0 && n > 0 && c.reps[0] != 0 {
			return errors.New("a row begins within a list")
		}
		if n > 0 {
			if err := c.appendLevels(c.defs[:n], c.reps[:n]); err != nil {
				return err
			}
		}
		stop := n < len(c.reps)
		c.defs, c.reps = c.defs[n:], c.reps[n:]
		if stop {
			break
		}
	}
	return nil
}

// decodeLevels decodes and checks the next levels of the page.
func (c *columnReader) decodeLevels() error {
	n := min(c.pages.left, chunkEntries)
	c.defs, c.reps = c.defBuf[:n], c.repBuf[:n]
	before := -1
	if len(c.def) > 0 {
		before = int(c.def[len(c.def)-1])
	}
	if err := c.pages.rep.levels(c.reps, c.node.maxRep()); err != nil {
		return fmt.Errorf("repetition levels: %w", err)
	}
	c.pages.left -= n
	same, err := c.pages.def.same(c.node.def, n)
	if err != nil {
		return fmt.Errorf("definition levels: %w", err)
	}
	for i := range same {
		c.defs[i] = c.node.def
	}
	if c.full = same == n; c.full && (before == int(c.node.def) || c.reps[0] == 0) {
		return nil // every list that goes on has elements
	}
	if err := c.pages.def.levels(c.defs[same:], c.node.def); err != nil {
		return fmt.Errorf("definition levels: %w", err)
	}
	for i, r := range c.reps {
		if r > 0 {
			need := int(c.node.elemDef[r-1])
			if int(c.defs[i]) < need || before < need {
				return errors.New("a list goes on that has no elements")
			}
		}
		before = int(c.defs[i])
	}
	return nil
}

// appendLevels appends the slots of entries, and their values.
func (c *columnReader) appendLevels(defs, reps []byte) error {
	if c.keepLevels {
		if err := c.take(int64(len(defs) + len(reps))); err != nil {
			return err
		}
		c.def, c.rep = append(c.def, defs...), append(c.rep, reps...)
	}
	greatest, least := c.node.def, c.node.slotDef
	n, present := 0, 0
	if reps != nil && c.full {
		return c.append(len(defs), len(defs), nil)
	}
	if least == 0 {
		for i, d := range defs {
			b := byte(boolInt(d == greatest))
			c.flags[i] = b
			present += int(b)
		}
		n = len(defs)
	} else {
		for _, d := range defs {
			b := byte(boolInt(d == greatest))
			c.flags[n] = b
			present += int(b)
			n += boolInt(d >= least)
		}
	}
	return c.append(n, present, c.flags[:n])
}

// append appends n slots, of which those whose flag is 1 take the page's next
// values. flags may be nil if all do.
func (c *columnReader) append(n, present int, flags []byte) error {
	if present < n {
		if err := c.addNulls(n, flags); err != nil {
			return err
		}
	} else {
		flags = nil
		if c.bits != nil {
			if err := c.growBits(n); err != nil {
				return err
			}
			bitutil.SetBitsTo(c.bits, int64(c.slots), int64(n), true)
		}
	}
	if c.slots+n > math.MaxInt32 {
		return overflow(c.node, "values", int64(c.slots)+int64(n))
	}
	c.slots += n
	c.nulls += n - present
	switch layoutOf(c.node) {
	case layoutFixed:
		return c.appendFixed(n, present, flags)
	case layoutBool:
		return c.appendBools(n, present, flags)
	case layoutBytes:
		return c.appendBytes(n, present, flags)
	case layoutDictionary:
		return c.appendIndices(n, present, flags)
	default:
		if present > 0 {
			return fmt.Errorf("%d values in a column of nulls", present)
		}
		return nil
	}
}

func (c *columnReader) growBits(n int) error {
	if need := (c.slots + n + 7) / 8; need > len(c.bits) {
		if err := c.take(int64(need - len(c.bits))); err != nil {
			return err
		}
		c.bits = append(c.bits, make([]byte, need-len(c.bits))...)
	}
	return nil
}

func (c *columnReader) addNulls(n int, flags []byte) error {
	if c.bits == nil {
		c.bits = make([]byte, (c.slots+7)/8)
		bitutil.SetBitsTo(c.bits, 0, int64(c.slots), true)
	}
	if err := c.growBits(n); err != nil {
		return err
	}
	at := c.slots
	i := 0
	for ; i < len(flags) && at%8 != 0; i++ {
		c.bits[at/8] |= flags[i] << (at % 8)
		at++
	}
	for ; i+8 <= len(flags); i += 8 {
		// The lowest bit of each byte, gathered into the highest byte.
		c.bits[at/8] = byte(little.Uint64(flags[i:]) * 0x0102040810204080 >> 56)
		at += 8
	}
	for ; i < len(flags); i++ {
		c.bits[at/8] |= flags[i] << (at % 8)
		at++
	}
	return nil
}

func (c *columnReader) appendFixed(n, present int, flags []byte) error {
	w := arrowWidth(c.node.dt)
	if err := c.take(int64(n) * int64(w)); err != nil {
		return err
	}
	at := len(c.fixed)
	c.fixed = slices.Grow(c.fixed, n*w)[:at+n*w]
	out := c.fixed[at:]
	if err := c.pages.values.fixed(out[:present*w]); err != nil {
		return err
	}
	if flags != nil {
		spread(out, present, flags, w)
	}
	return nil
}

// spread moves the values at the front of out to the slots that have one, from the
// last to the first, and clears the others.
func spread(out []byte, present int, flags []byte, w int) {
	switch w {
	case 4:
		spreadWords(arrow.Uint32Traits.CastFromBytes(out), present, flags)
	case 8:
		spreadWords(arrow.Uint64Traits.CastFromBytes(out), present, flags)
	default:
		for i := len(flags) - 1; i >= 0; i-- {
			slot := out[i*w : (i+1)*w]
			if flags[i] == 0 {
				clear(slot)
				continue
			}
			present--
			copy(slot, out[present*w:])
		}
	}
}

func spreadWords[T uint32 | uint64 | int32](out []T, present int, flags []byte) {
	for i := len(flags) - 1; i >= 0; i-- {
		if flags[i] == 0 {
			out[i] = 0
			continue
		}
		present--
		out[i] = out[present]
	}
}

func (c *columnReader) appendBools(n, present int, flags []byte) error {
	size := (c.slots + 7) / 8
	if err := c.take(int64(size - len(c.fixed))); err != nil {
		return err
	}
	c.fixed = append(c.fixed, make([]byte, size-len(c.fixed))...)
	var buf [chunkEntries]byte
	at := c.slots - n
	for n > 0 {
		k := min(n, chunkEntries)
		if flags != nil {
			k = min(k, len(flags))
		}
		values := buf[:k]
		have := k
		if flags != nil {
			have = present
		}
		if err := c.pages.values.booleans(values[:have]); err != nil {
			return err
		}
		if flags != nil {
			spread(values, have, flags, 1)
		}
		for i, v := range values {
			c.fixed[(at+i)/8] |= v << ((at + i) % 8)
		}
		at, n = at+k, n-k
	}
	return nil
}

func (c *columnReader) appendBytes(n, present int, flags []byte) error {
	if err := c.take(8 * int64(n)); err != nil {
		return err
	}
	at, had := len(c.ends), len(c.data)
	inPage := c.pages.values.encoding == format.Plain || c.pages.values.encoding == format.DeltaLengthByteArray
	var err error
	if c.data, c.ends, err = c.pages.values.bytes(c.data, c.ends, present, c.budget); err != nil {
		return err
	}
	if more := int64(len(c.data) - had); inPage { // no more than the page has
		if err := c.take(more); err != nil {
			return err
		}
	} else {
		c.taken += more
	}
	if flags == nil {
		return nil
	}
	c.ends = slices.Grow(c.ends, n-present)[:at+n]
	end := int64(len(c.data))
	for i := n - 1; i >= 0; i-- {
		c.ends[at+i] = end
		if flags[i] != 0 {
			present--
			end = int64(had)
			if present > 0 {
				end = c.ends[at+present-1]
			}
		}
	}
	return nil
}

func (c *columnReader) appendIndices(n, present int, flags []byte) error {
	if err := c.take(4 * int64(n)); err != nil {
		return err
	}
	at := len(c.index)
	c.index = slices.Grow(c.index, n)[:at+n]
	out := c.index[at:]
	p := &c.pages.values
	if p.encoding == format.RLEDictionary {
		if c.from != p.dict {
			if c.dictLen != 0 {
				return errors.New("dictionary after values")
			}
			c.from, c.dict, c.dictLen = p.dict, p.dict.values, p.dict.size
		}
		if err := p.runs.indices(out[:present], p.dict.size); err != nil {
			return err
		}
	} else if err := c.number(out[:present]); err != nil {
		return err
	}
	if flags != nil {
		spreadWords(out, present, flags)
	}
	return nil
}

// number gives values that are not in a dictionary their place in the column's, in
// order of their first appearance.
func (c *columnReader) number(out []int32) error {
	p := &c.pages.values
	if layoutOf(c.node) == layoutDictionary && valueType(c.node.dt).ID() == arrow.NULL {
		if len(out) > 0 {
			return fmt.Errorf("%d values in a column of nulls", len(out))
		}
		return nil
	}
	bytesLike := c.node.storage.physical == format.ByteArray
	w := p.arrow
	if c.node.storage.physical == format.Boolean {
		w = 1
	}
	if c.known == nil {
		c.known = make(map[string]int32, c.dictLen)
		for i := c.dictLen - 1; i >= 0; i-- { // the first of those that are equal
			if bytesLike {
				c.known[string(c.dict.data[c.dict.ends[i]:c.dict.ends[i+1]])] = int32(i)
			} else {
				c.known[string(c.dict.fixed[w*i:w*(i+1)])] = int32(i)
			}
		}
		if bytesLike && c.dict.ends == nil {
			c.dict.ends = []int64{0}
		}
	}
	var data []byte
	var ends []int64
	var err error
	switch {
	case bytesLike:
		data, ends, err = p.bytes(nil, []int64{0}, len(out), c.budget)
	case c.node.storage.physical == format.Boolean:
		data = make([]byte, len(out))
		err = p.booleans(data)
	default:
		data = make([]byte, w*len(out))
		err = p.fixed(data)
	}
	if err != nil {
		return err
	}
	for i := range out {
		var v []byte
		if bytesLike {
			v = data[ends[i]:ends[i+1]]
		} else {
			v = data[w*i : w*(i+1)]
		}
		k, ok := c.known[string(v)]
		if !ok {
			if err := c.budget.take(c.node, int64(2*len(v)+64)); err != nil {
				return err
			}
			k = int32(c.dictLen)
			c.dictLen++
			c.known[string(v)] = k
			if bytesLike {
				c.dict.data = append(c.dict.data[:len(c.dict.data):len(c.dict.data)], v...)
				c.dict.ends = append(c.dict.ends[:len(c.dict.ends):len(c.dict.ends)], int64(len(c.dict.data)))
			} else {
				c.dict.fixed = append(c.dict.fixed[:len(c.dict.fixed):len(c.dict.fixed)], v...)
			}
		}
		out[i] = k
	}
	return nil
}
