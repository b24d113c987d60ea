package parquet

import (
	"errors"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/parquet-go/parquet-go/format"
)

var errFewValues = errors.New("page has fewer values than its levels say")

// pageValues are the values of a page, as many at a time as are asked for.
type pageValues struct {
	node     *node
	encoding format.Encoding
	width    int    // of a value in the file
	arrow    int    // of a value in Arrow's buffer
	raw      []byte // PLAIN: what is left; BYTE_STREAM_SPLIT: all of it; byte arrays: the data that is left
	count    int    // BYTE_STREAM_SPLIT: values in all
	at       int    // BYTE_STREAM_SPLIT and PLAIN booleans: values read
	runs     hybrid // indices, booleans
	dict     *dictionaryPage
	deltas   deltas // integers, lengths of byte arrays
	suffixes deltas // DELTA_BYTE_ARRAY
	last     []byte // DELTA_BYTE_ARRAY
	ints     []int64
	scratch  []byte
	picked   []int32
}

// reset starts on the values of a page with at most so many.
func (p *pageValues) reset(n *node, how format.Encoding, raw []byte, most int, dict *dictionaryPage) error {
	p.node, p.encoding, p.raw, p.dict, p.at = n, how, raw, dict, 0
	p.width, p.arrow = n.storage.width, arrowWidth(valueType(n.dt))
	physical := n.storage.physical
	wrong := func() error { return fmt.Errorf("values of type %v encoded as %v", physical, how) }
	switch how {
	case format.Plain:
	case format.PlainDictionary, format.RLEDictionary:
		p.encoding = format.RLEDictionary
		if physical == format.Boolean {
			return wrong()
		}
		if dict == nil {
			return errors.New("indices without a dictionary")
		}
		if len(raw) == 0 { // of a page that is all null
			p.runs.reset(nil, 0)
			return nil
		}
		if raw[0] > 32 {
			return fmt.Errorf("indices of %d bits", raw[0])
		}
		p.runs.reset(raw[1:], int(raw[0]))
	case format.RLE:
		if physical != format.Boolean {
			return wrong()
		}
		if len(raw) < 4 || int64(little.Uint32(raw)) > int64(len(raw)-4) {
			return errors.New("booleans end early")
		}
		p.runs.reset(raw[4:4+little.Uint32(raw)], 1)
	case format.DeltaBinaryPacked:
		if physical != format.Int32 && physical != format.Int64 {
			return wrong()
		}
		if len(raw) == 0 {
			p.deltas = deltas{buf: p.deltas.buf[:0]}
			return nil
		}
		return p.deltas.reset(raw, most)
	case format.ByteStreamSplit:
		if p.width == 0 || len(raw)%p.width != 0 {
			return wrong()
		}
		p.count = len(raw) / p.width
	case format.DeltaLengthByteArray, format.DeltaByteArray:
		if physical != format.ByteArray && (physical != format.FixedLenByteArray || how == format.DeltaLengthByteArray) {
			return wrong()
		}
		if len(raw) == 0 {
			p.deltas, p.suffixes = deltas{buf: p.deltas.buf[:0]}, deltas{buf: p.suffixes.buf[:0]}
			return nil
		}
		if err := p.deltas.reset(raw, most); err != nil {
			return err
		}
		rest, err := p.deltas.rest()
		if err != nil {
			return err
		}
		if how == format.DeltaByteArray {
			if err := p.suffixes.reset(rest, most); err != nil {
				return err
			}
			if p.suffixes.left != p.deltas.left {
				return fmt.Errorf("%d prefixes and %d suffixes", p.deltas.left, p.suffixes.left)
			}
			if rest, err = p.suffixes.rest(); err != nil {
				return err
			}
			p.last = p.last[:0]
		}
		p.raw = rest
	default:
		return &UnsupportedError{n.name(), "encoding " + how.String(), "write the file with another encoding"}
	}
	return nil
}

// valueType is the type of the values: for a dictionary, of its entries.
func valueType(dt arrow.DataType) arrow.DataType {
	if d, ok := dt.(*arrow.DictionaryType); ok {
		return d.ValueType
	}
	return dt
}

// fixed fills dst with values of fixed width, as Arrow has them.
func (p *pageValues) fixed(dst []byte) error {
	n := len(dst) / p.arrow
	if p.encoding == format.RLEDictionary {
		p.picked = grown(p.picked, n)
		if err := p.runs.indices(p.picked, p.dict.size); err != nil {
			return err
		}
		pickFixed(dst, p.dict.values.fixed, p.picked, p.arrow)
		return nil
	}
	if p.encoding == format.Plain { // converted in place
		if n*p.width > len(p.raw) {
			return errFewValues
		}
		in := p.raw[:n*p.width]
		p.raw = p.raw[len(in):]
		return p.convert(dst, in)
	}
	in := dst
	if p.node.storage.conv != convSame {
		p.scratch = grown(p.scratch, n*p.width)
		in = p.scratch
	}
	var err error
	switch p.encoding {
	case format.DeltaBinaryPacked:
		err = p.integers(in, n)
	case format.ByteStreamSplit:
		err = p.unsplit(in, n)
	case format.DeltaByteArray:
		for i := 0; i < n && err == nil; i++ {
			var v []byte
			if v, err = p.prefixed(); err == nil && len(v) != p.width {
				err = fmt.Errorf("value of %d bytes, want %d", len(v), p.width)
			}
			copy(in[i*p.width:], v)
		}
	default:
		err = fmt.Errorf("values of fixed width encoded as %v", p.encoding)
	}
	if err != nil || p.node.storage.conv == convSame {
		return err
	}
	return p.convert(dst, in)
}

func (p *pageValues) convert(dst, src []byte) error {
	if bad := p.node.storage.toArrow(dst, src, p.arrow); bad >= 0 {
		return fmt.Errorf("value %x does not fit %s", src[bad*p.width:(bad+1)*p.width], valueType(p.node.dt))
	}
	return nil
}

func (p *pageValues) integers(dst []byte, n int) error {
	for n > 0 {
		k := min(n, 1024)
		p.ints = grown(p.ints, k)
		if err := p.deltas.next(p.ints); err != nil {
			return err
		}
		if p.width == 8 {
			copy(dst, arrow.Int64Traits.CastToBytes(p.ints))
		} else {
			for i, v := range p.ints {
				little.PutUint32(dst[4*i:], uint32(v))
			}
		}
		dst, n = dst[k*p.width:], n-k
	}
	return nil
}

func (p *pageValues) unsplit(dst []byte, n int) error {
	if n > p.count-p.at {
		return errFewValues
	}
	for b := range p.width {
		stream := p.raw[b*p.count+p.at:]
		for i := range n {
			dst[i*p.width+b] = stream[i]
		}
	}
	p.at += n
	return nil
}

// pickFixed takes entries of w bytes by checked indices.
func pickFixed(dst, entries []byte, picked []int32, w int) {
	switch w {
	case 4:
		from, to := arrow.Uint32Traits.CastFromBytes(entries), arrow.Uint32Traits.CastFromBytes(dst)
		for i, k := range picked {
			to[i] = from[k]
		}
	case 8:
		from, to := arrow.Uint64Traits.CastFromBytes(entries), arrow.Uint64Traits.CastFromBytes(dst)
		for i, k := range picked {
			to[i] = from[k]
		}
	default:
		for i, k := range picked {
			copy(dst[w*i:w*(i+1)], entries[w*int(k):])
		}
	}
}

// booleans fills dst with a byte for each.
func (p *pageValues) booleans(dst []byte) error {
	switch p.encoding {
	case format.RLE:
		return p.runs.levels(dst, 1)
	case format.Plain:
		if p.at+len(dst) > 8*len(p.raw) {
			return errFewValues
		}
		for i := range dst {
			dst[i] = p.raw[p.at/8] >> (p.at % 8) & 1
			p.at++
		}
		return nil
	default:
		return fmt.Errorf("booleans encoded as %v", p.encoding)
	}
}

// prefixed returns the next value of DELTA_BYTE_ARRAY, valid until the one after.
func (p *pageValues) prefixed() ([]byte, error) {
	var prefix, suffix [1]int64
	if err := p.deltas.next(prefix[:]); err != nil {
		return nil, err
	}
	if err := p.suffixes.next(suffix[:]); err != nil {
		return nil, err
	}
	if prefix[0] < 0 || prefix[0] > int64(len(p.last)) || suffix[0] < 0 || suffix[0] > int64(len(p.raw)) {
		return nil, fmt.Errorf("%d bytes of a value of %d, and %d of %d", prefix[0], len(p.last), suffix[0], len(p.raw))
	}
	p.last = append(p.last[:prefix[0]], p.raw[:suffix[0]]...)
	p.raw = p.raw[suffix[0]:]
	return p.last, nil
}

// bytes appends n byte arrays to data and their ends to ends. Memory is taken of the
// budget before it is used.
func (p *pageValues) bytes(data []byte, ends []int64, n int, b *budget) ([]byte, []int64, error) {
	switch p.encoding {
	case format.RLEDictionary:
		p.picked = grown(p.picked, n)
		if err := p.runs.indices(p.picked, p.dict.size); err != nil {
			return data, ends, err
		}
		from := &p.dict.values
		more := int64(0)
		for _, k := range p.picked {
			more += from.ends[k+1] - from.ends[k]
		}
		if err := b.take(p.node, more); err != nil {
			return data, ends, err
		}
		data = slices.Grow(data, int(more))
		for _, k := range p.picked {
			data = append(data, from.data[from.ends[k]:from.ends[k+1]]...)
			ends = append(ends, int64(len(data)))
		}
		return data, ends, nil
	case format.Plain:
		for range n {
			if len(p.raw) < 4 {
				return data, ends, errFewValues
			}
			size := int64(little.Uint32(p.raw))
			if size > int64(len(p.raw)-4) {
				return data, ends, fmt.Errorf("value of %d bytes in a page with %d", size, len(p.raw)-4)
			}
			data = append(data, p.raw[4:4+size]...)
			p.raw = p.raw[4+size:]
			ends = append(ends, int64(len(data)))
		}
		return data, ends, nil
	case format.DeltaLengthByteArray:
		p.ints = grown(p.ints, n)
		if err := p.deltas.next(p.ints); err != nil {
			return data, ends, err
		}
		end, left := int64(len(data)), int64(len(p.raw))
		for _, size := range p.ints {
			if size < 0 || size > left {
				return data, ends, fmt.Errorf("value of %d bytes in a page with %d", size, left)
			}
			left -= size
			end += size
			ends = append(ends, end)
		}
		used := int64(len(p.raw)) - left
		data = append(data, p.raw[:used]...)
		p.raw = p.raw[used:]
		return data, ends, nil
	case format.DeltaByteArray:
		for range n {
			v, err := p.prefixed()
			if err != nil {
				return data, ends, err
			}
			if err := b.take(p.node, int64(len(v))); err != nil {
				return data, ends, err
			}
			data = append(data, v...)
			ends = append(ends, int64(len(data)))
		}
		return data, ends, nil
	default:
		return data, ends, fmt.Errorf("byte arrays encoded as %v", p.encoding)
	}
}

// dictionaryPage is the dictionary of a column chunk.
type dictionaryPage struct {
	size   int
	values entries
}

// entries are distinct values as Arrow has them: of fixed width, or byte arrays.
type entries struct {
	fixed []byte
	data  []byte
	ends  []int64 // n+1
}

func newDictionaryPage(n *node, page []byte, size int, b *budget) (*dictionaryPage, error) {
	d := &dictionaryPage{size: size}
	if n.storage.physical == format.Boolean {
		return nil, errors.New("of booleans")
	}
	var p pageValues
	if err := p.reset(n, format.Plain, page, size, nil); err != nil {
		return nil, err
	}
	if n.storage.physical == format.ByteArray {
		if size > len(page)/4 {
			return nil, errFewValues
		}
		if err := b.take(n, int64(len(page))+8*int64(size+1)); err != nil {
			return nil, err
		}
		var err error
		d.values.ends = make([]int64, 1, size+1)
		d.values.data, d.values.ends, err = p.bytes(make([]byte, 0, len(page)-4*size), d.values.ends, size, b)
		return d, err
	}
	if int64(size)*int64(p.width) > int64(len(page)) {
		return nil, errFewValues
	}
	if p.arrow == 0 { // a column of nulls
		d.size = 0
		return d, nil
	}
	if err := b.take(n, int64(size)*int64(p.arrow)); err != nil {
		return nil, err
	}
	d.values.fixed = make([]byte, size*p.arrow)
	return d, p.fixed(d.values.fixed)
}
