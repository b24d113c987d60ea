package parquet

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/bitutil"
	"github.com/parquet-go/parquet-go/encoding/delta"
	"github.com/parquet-go/parquet-go/encoding/rle"
	"github.com/parquet-go/parquet-go/format"
)

// columnEncoder makes the pages of one column of a row group after the other. It
// keeps its scratch memory. Not safe for concurrent use.
type columnEncoder struct {
	config WriterConfig
	compressor
	shred    shredder
	gathered dense
	entries  dense // of an Arrow dictionary
	unique   dense // of those, one of each
	dict     dictionaryBuilder
	// values are what is encoded: one of the two above. With a dictionary, index has
	// for each value the entry, and entry i is the value at entryAt[i], or at i.
	values     *dense
	index      []int32
	entryAt    []int32
	entryCount int
	seen       []bool
	remap      []int32
	page       []byte
	levels     []byte
	packed     []byte
	lengths    []int32
	out        *encodedChunk
	tried      int // pages that did not get smaller
}

// encodedChunk is a column of a row group, ready to be written.
type encodedChunk struct {
	body   []byte
	meta   format.ColumnMetaData // offsets are from the start of body
	pages  []encodedPage
	bounds bounds
	nulls  int64
	// indexed: each page has bounds or is all null.
	indexed bool
}

type encodedPage struct {
	offset   int64
	size     int32
	firstRow int64
	nulls    int64
	bounds   bounds
	allNull  bool
}

func newColumnEncoder(config WriterConfig) *columnEncoder {
	return &columnEncoder{config: config, compressor: compressor{kind: config.Compression}, dict: dictionaryBuilder{seed: maphash.MakeSeed()}}
}

// encode makes the pages of a leaf of a column.
func (e *columnEncoder) encode(root, leaf *node, col arrow.Array, rows int, body []byte) (*encodedChunk, error) {
	e.shred.open(root, col, leaf.firstLeaf)
	if err := e.shred.rows(rows); err != nil {
		return nil, err
	}
	e.out = &encodedChunk{body: body[:0], indexed: true}
	e.out.meta = format.ColumnMetaData{Type: leaf.storage.physical, PathInSchema: leaf.path, Codec: e.config.Compression.codec(), NumValues: int64(e.shred.entries)}
	e.tried = 0
	how, err := e.choose(leaf)
	if err != nil {
		return nil, err
	}
	e.out.meta.Encoding = []format.Encoding{how, format.RLE}
	if how == format.RLEDictionary {
		e.out.meta.Encoding = []format.Encoding{format.Plain, how, format.RLE}
	}
	if err := e.dataPages(leaf, how, rows); err != nil {
		return nil, err
	}
	e.out.meta.TotalCompressedSize = int64(len(e.out.body))
	if e.out.bounds = e.out.bounds.clone(); len(e.out.bounds.min) > maxStatisticBytes || len(e.out.bounds.max) > maxStatisticBytes {
		e.out.bounds = bounds{}
	}
	return e.out, nil
}

// choose gathers the values, decides how they are encoded and writes the
// dictionary, if any.
func (e *columnEncoder) choose(leaf *node) (format.Encoding, error) {
	l := &e.shred.leaf
	if d, ok := l.arr.(*array.Dictionary); ok {
		return e.chooseForDictionary(leaf, d)
	}
	e.values = &e.gathered
	if err := e.values.gather(leaf, l, l.arr, e.shred.spans); err != nil {
		return 0, err
	}
	return e.chooseFor(leaf)
}

func (e *columnEncoder) chooseFor(leaf *node) (format.Encoding, error) {
	d := e.values
	physical := leaf.storage.physical
	if physical == format.Boolean {
		return format.Plain, nil
	}
	dictPays := e.dict.pays(d)
	isInteger := physical == format.Int32 || physical == format.Int64
	if isInteger && deltaPays(d, dictPays) {
		return format.DeltaBinaryPacked, nil
	}
	if dictPays && e.dict.build(d, int64(e.config.DictionaryBytes)) {
		e.index, e.entryAt, e.entryCount = e.dict.index, e.dict.first, len(e.dict.first)
		e.page = e.dict.entries(e.page[:0], d)
		return format.RLEDictionary, e.dictionaryPage(len(e.dict.first))
	}
	if physical == format.ByteArray {
		return format.DeltaLengthByteArray, nil
	}
	return format.Plain, nil
}

// deltaPays guesses from runs of neighbours whether differences take at most 6 of
// 10 bits. Where a dictionary pays, too, they must take few.
func deltaPays(d *dense, dictPays bool) bool {
	const run, runs = 32, 16
	if d.n < 2*run {
		return false
	}
	total, tried := 0, 0
	at := func(i int) int64 {
		if d.width == 8 {
			return int64(little.Uint64(d.fixed[8*i:]))
		}
		return int64(int32(little.Uint32(d.fixed[4*i:])))
	}
	for k := range runs {
		from := k * (d.n - run - 1) / runs
		lo, hi := int64(math.MaxInt64), int64(math.MinInt64)
		for i := from + 1; i <= from+run; i++ {
			diff := at(i) - at(i-1)
			lo, hi = min(lo, diff), max(hi, diff)
		}
		total += bits.Len64(uint64(hi - lo))
		tried++
	}
	limit := 6 * 8 * d.width / 10
	if dictPays {
		limit = 8
	}
	return total/tried <= limit
}

// chooseForDictionary keeps an Arrow dictionary and its indices as they are, unless
// it is too large for a page of its own or most of it is not used.
func (e *columnEncoder) chooseForDictionary(leaf *node, a *array.Dictionary) (format.Encoding, error) {
	l := &e.shred.leaf
	values := slotsOf(a.Dictionary())
	all := []span{{0, a.Dictionary().Len()}}
	if values.arr.Len() == 0 {
		all = nil
	}
	if err := e.entries.gather(leaf, &values, values.arr, all); err != nil {
		return 0, err
	}
	e.remap = e.distinct(&values)
	e.index = indices(e.index, a, l, e.shred.spans, e.remap)
	d := &e.entries
	if e.remap != nil { // the distinct entries alone
		d = &e.unique
		d.pick(&e.entries, e.dict.first)
	}
	if leaf.storage.physical != format.Boolean && leaf.storage.logical.id != logicalNull && d.n <= max(sampleValues, len(e.index)) &&
		d.plainBytes(0, d.n) <= max(int64(e.config.DictionaryBytes), int64(e.config.PageBytes)) {
		e.values, e.entryAt, e.entryCount = d, nil, d.n
		e.page = appendPlain(e.page[:0], d, 0, d.n)
		return format.RLEDictionary, e.dictionaryPage(d.n)
	}
	e.values = &e.gathered
	e.values.pick(d, e.index)
	return e.chooseFor(leaf)
}

// distinct maps the entries of an Arrow dictionary to those of the Parquet one: it
// has no nulls, and each value once, since Arrow C++ misreads one that repeats them.
// It returns nil if they are the same.
func (e *columnEncoder) distinct(l *leafSlots) []int32 {
	d := &e.entries
	if l.none {
		return nil
	}
	e.dict.reset(max(1, d.n))
	to := make([]int32, d.n)
	for i := range to {
		if d.bits != nil { // booleans have no Parquet dictionary
			to[i], e.dict.first = int32(i), append(e.dict.first, int32(i))
		} else {
			to[i], _ = e.dict.add(d, i)
		}
	}
	if len(e.dict.first) == l.arr.Len() {
		return nil
	}
	remap, next := make([]int32, l.arr.Len()), 0
	for i := range remap {
		if l.valid(i) {
			remap[i] = to[next]
			next++
		}
	}
	return remap
}

// pick takes values by their index.
func (d *dense) pick(from *dense, index []int32) {
	d.n, d.width, d.fixed, d.bits, d.ends, d.data = len(index), from.width, nil, nil, nil, nil
	switch {
	case from.ends != nil:
		d.ends, d.ownData = grown(d.ownEnds, len(index)+1), d.ownData[:0]
		d.ownEnds = d.ends
		d.ends[0] = 0
		for i, k := range index {
			d.ownData = append(d.ownData, from.value(int(k))...)
			d.ends[i+1] = int64(len(d.ownData))
		}
		d.data = d.ownData
	case from.bits != nil:
		d.bits = make([]byte, (len(index)+7)/8)
		for i, k := range index {
			d.bits[i/8] |= from.bits[k/8] >> (k % 8) & 1 << (i % 8)
		}
	default:
		w := from.width
		d.ownFixed = grown(d.ownFixed, w*len(index))
		d.fixed = d.ownFixed
		for i, k := range index {
			copy(d.fixed[w*i:w*(i+1)], from.fixed[w*int(k):])
		}
	}
}

func (e *columnEncoder) dictionaryPage(entries int) error {
	h := pageHeader{kind: format.DictionaryPage, values: int32(entries), uncompressed: int32(len(e.page)), encoding: format.Plain}
	// A dictionary page always is as the chunk's codec says.
	packed, err := e.compressor.append(e.packed[:0], e.page)
	if err != nil {
		return err
	}
	e.packed = packed
	h.compressed = int32(len(packed))
	at := len(e.out.body)
	e.out.body = h.append(e.out.body)
	e.out.meta.TotalUncompressedSize += int64(len(e.out.body)-at) + int64(len(e.page))
	e.out.body = append(e.out.body, packed...)
	e.out.meta.DictionaryPageOffset = 1 // it is first; where that is is known when it is written
	return nil
}

// dataPages cuts the entries into pages.
func (e *columnEncoder) dataPages(leaf *node, how format.Encoding, rows int) error {
	s := &e.shred
	e.out.meta.DataPageOffset = int64(len(e.out.body))
	width := 0
	if how == format.RLEDictionary {
		width = bits.Len(uint(max(e.entryCount-1, 0)))
	}
	value, row := 0, int64(0)
	for at := 0; at < s.entries; {
		end, present, pageRows := e.cut(leaf, how, at, value, width)
		if err := e.dataPage(leaf, how, at, end, value, value+present, pageRows, row, width); err != nil {
			return err
		}
		at, value, row = end, value+present, row+int64(pageRows)
	}
	if row != int64(rows) {
		return fmt.Errorf("column of %d rows in a batch of %d", row, rows)
	}
	return nil
}

// maxPageRows keeps the level buffers of readers small.
const maxPageRows = 1 << 20

// cut returns the end of the page that begins at an entry, at a row's end, and how
// many values and rows are in it.
func (e *columnEncoder) cut(leaf *node, how format.Encoding, at, value, width int) (end, present, rows int) {
	s := &e.shred
	limit := int64(e.config.PageBytes)
	size := func(from, to int) int64 {
		if how == format.RLEDictionary {
			return int64(to-from) * int64(width) / 8
		}
		return e.values.plainBytes(from, to)
	}
	step := 1024
	if n := e.values.n; n > 0 && how != format.RLEDictionary {
		step = int(max(1, min(1024, limit/8/max(1, e.values.plainBytes(0, n)/int64(n)))))
	}
	for end = at; end < s.entries; {
		next := min(end+step, s.entries)
		for s.rep != nil && next < s.entries && s.rep[next] != 0 {
			next++
		}
		more := next - end
		if s.def != nil {
			more = 0
			for _, d := range s.def[end:next] {
				if d == leaf.def {
					more++
				}
			}
		}
		if s.rep == nil {
			rows += next - end
		} else {
			for _, r := range s.rep[end:next] {
				rows += boolInt(r == 0)
			}
		}
		present, end = present+more, next
		if size(value, value+present) >= limit || rows >= maxPageRows || end-at >= 8*maxPageRows {
			break
		}
	}
	return end, present, rows
}

// dataPage writes entries at to end, whose values are from to to.
func (e *columnEncoder) dataPage(leaf *node, how format.Encoding, at, end, from, to, rows int, firstRow int64, width int) error {
	s := &e.shred
	h := pageHeader{kind: format.DataPageV2, values: int32(end - at), nulls: int32(end - at - (to - from)), rows: int32(rows), encoding: how}
	e.levels = e.levels[:0]
	if leaf.maxRep() > 0 {
		if err := e.appendLevels(s.rep[at:end], leaf.maxRep()); err != nil {
			return err
		}
		h.repBytes = int32(len(e.levels))
	}
	if leaf.def > 0 {
		if s.def == nil {
			e.levels = appendRun(e.levels, end-at, leaf.def)
		} else if err := e.appendLevels(s.def[at:end], leaf.def); err != nil {
			return err
		}
		h.defBytes = int32(len(e.levels)) - h.repBytes
	}
	page := encodedPage{offset: int64(len(e.out.body)), firstRow: firstRow, nulls: int64(h.nulls), allNull: from == to}
	values, err := e.encodeValues(leaf, how, from, to, width)
	ok := true
	if err != nil {
		return err
	}
	if int64(len(values))+int64(len(e.levels)) > math.MaxInt32 {
		return &ValueError{Column: leaf.name(), Type: leaf.field.Type.String(), Index: int64(from), Hint: "a row has more than the 2 GiB of a page; split it"}
	}
	if page.bounds = e.pageBounds(leaf, how, from, to); page.bounds.min == nil && !page.allNull {
		e.out.indexed = false
	}
	e.out.bounds.widen(leaf.storage.order, page.bounds)
	if page.bounds, ok = page.bounds.truncate(); !ok {
		e.out.indexed = false
	}
	page.bounds = page.bounds.clone() // the values' memory is used again
	e.out.nulls += page.nulls

	packed := values
	h.plainValues = true
	// After a page that did not get smaller, few others are tried.
	if e.config.Compression != Uncompressed && len(values) > 0 && (e.tried == 0 || e.tried%8 == 0) {
		if packed, err = e.compressor.append(e.packed[:0], values); err != nil {
			return err
		}
		e.packed = packed
		if h.plainValues = len(packed) > len(values)*9/10; h.plainValues {
			packed = values
		}
	}
	switch {
	case !h.plainValues:
		e.tried = 0
	case len(values) > 0:
		e.tried++
	}
	h.uncompressed, h.compressed = int32(len(e.levels)+len(values)), int32(len(e.levels)+len(packed))
	e.out.body = h.append(e.out.body)
	e.out.meta.TotalUncompressedSize += int64(len(e.out.body)) - page.offset + int64(h.uncompressed)
	e.out.body = append(append(e.out.body, e.levels...), packed...)
	page.size = int32(int64(len(e.out.body)) - page.offset)
	e.out.pages = append(e.out.pages, page)
	return nil
}

func (e *columnEncoder) appendLevels(levels []byte, maxLevel byte) error {
	enc := rle.Encoding{BitWidth: bits.Len8(maxLevel)}
	out, err := enc.EncodeLevels(e.packed[:0], levels)
	if err != nil {
		return err
	}
	e.packed = out
	e.levels = append(e.levels, out...)
	return nil
}

// appendRun appends n levels of one value.
func appendRun(b []byte, n int, level byte) []byte {
	for n <<= 1; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n), level)
}

// encodeValues returns the values of a page before compression. It may alias the
// batch.
func (e *columnEncoder) encodeValues(leaf *node, how format.Encoding, from, to, width int) ([]byte, error) {
	d := e.values
	switch how {
	case format.RLEDictionary:
		enc := rle.Encoding{BitWidth: width}
		out, err := enc.EncodeInt32(e.page[:0], e.index[from:to])
		if err != nil {
			return nil, err
		}
		e.page = append(out, 0)
		copy(e.page[1:], e.page[:len(e.page)-1])
		e.page[0] = byte(width)
		return e.page, nil
	case format.DeltaBinaryPacked:
		var err error
		var enc delta.BinaryPackedEncoding
		if leaf.storage.width == 8 {
			e.page, err = enc.EncodeInt64(e.page[:0], arrow.Int64Traits.CastFromBytes(d.fixed)[from:to])
		} else {
			e.page, err = enc.EncodeInt32(e.page[:0], arrow.Int32Traits.CastFromBytes(d.fixed)[from:to])
		}
		return e.page, err
	case format.DeltaLengthByteArray:
		e.lengths = grown(e.lengths, to-from)
		for i := range e.lengths {
			e.lengths[i] = int32(d.ends[from+i+1] - d.ends[from+i])
		}
		var enc delta.BinaryPackedEncoding
		out, err := enc.EncodeInt32(e.page[:0], e.lengths)
		if err != nil {
			return nil, err
		}
		e.page = append(out, d.data[d.ends[from]:d.ends[to]]...)
		return e.page, nil
	}
	if leaf.storage.physical == format.Boolean {
		e.page = grown(e.page, (to-from+7)/8)
		clear(e.page)
		if to > from {
			bitutil.CopyBitmap(d.bits, from, to-from, e.page, 0)
		}
		return e.page, nil
	}
	return d.fixed[d.width*from : d.width*to], nil
}

// pageBounds are the bounds of the values from from to to.
func (e *columnEncoder) pageBounds(leaf *node, how format.Encoding, from, to int) bounds {
	if how != format.RLEDictionary {
		return boundsOf(leaf.storage.order, e.values, from, to)
	}
	// Of the entries that the page refers to.
	e.seen = grown(e.seen, e.entryCount)
	clear(e.seen)
	for _, i := range e.index[from:to] {
		e.seen[i] = true
	}
	var b bounds
	for i, used := range e.seen {
		if !used {
			continue
		}
		if e.entryAt != nil {
			i = int(e.entryAt[i])
		}
		b.add(leaf.storage.order, e.values.plain(i))
	}
	b.bothZeros(leaf.storage.order)
	return b
}
