package parquet

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync/atomic"

	"github.com/parquet-go/bitpack"
	"github.com/parquet-go/parquet-go/format"
)

// pagePadding is what unpacking may read after the end of a page.
const pagePadding = bitpack.PaddingInt64

// budget bounds the memory of a batch being read, pages included.
type budget struct {
	limit int64
	used  atomic.Int64
}

func (b *budget) take(n *node, bytes int64) error {
	if used := b.used.Add(bytes); used > b.limit {
		return &LimitError{Column: n.name(), Bytes: used, Limit: b.limit}
	}
	return nil
}

func (b *budget) give(bytes int64) { b.used.Add(-bytes) }

// pageReader reads the pages of a column chunk one after the other.
type pageReader struct {
	node   *node
	codec  format.CompressionCodec
	src    io.ReaderAt
	off    int64 // of the next byte to read
	end    int64
	budget *budget

	buf  []byte // read ahead
	lent bool   // buf is the file's own memory, which is not written to
	pos  int    // in buf
	body []byte // decompressed
	held int64  // of the budget, for body

	// The current page.
	left     int // entries
	def, rep hybrid
	values   pageValues
	entries  int64 // in the chunk, still to come
	dict     *dictionaryPage
	seenData bool
}

const readAhead = 256 << 10

func (r *pageReader) open(n *node, k *chunk, src io.ReaderAt, b *budget) error {
	if k.external {
		return &UnsupportedError{n.name(), "column in another file", "copy the file's parts into one"}
	}
	if k.encrypted {
		return &UnsupportedError{n.name(), "encrypted column", "decrypt the file first"}
	}
	if k.physical != n.storage.physical {
		return fmt.Errorf("chunk of type %v in a column of type %v", k.physical, n.storage.physical)
	}
	if k.values < 0 {
		return fmt.Errorf("chunk of %d values", k.values)
	}
	buf, body := r.buf, r.body
	if r.lent {
		buf = nil
	}
	*r = pageReader{node: n, codec: k.codec, src: src, off: k.start(), end: k.start() + k.compressed, budget: b, entries: k.values, buf: buf[:0], body: body[:0]}
	if m, ok := src.(interface {
		view(off, n int64) ([]byte, bool)
	}); ok {
		if chunk, ok := m.view(r.off, r.end-r.off); ok {
			r.buf, r.lent, r.off = chunk, true, r.end
		}
	}
	return nil
}

// fill makes n bytes available at pos, or as many as the chunk has.
func (r *pageReader) fill(n int) ([]byte, error) {
	if have := len(r.buf) - r.pos; have < n && r.off < r.end {
		more := int(min(int64(max(n-have, readAhead)), r.end-r.off))
		if cap(r.buf) < have+more {
			next := make([]byte, have, have+more)
			copy(next, r.buf[r.pos:])
			r.buf = next
		} else {
			r.buf = r.buf[:copy(r.buf[:cap(r.buf)], r.buf[r.pos:])]
		}
		r.pos = 0
		r.buf = r.buf[:have+more]
		if err := readAt(r.src, r.buf[have:], r.off); err != nil {
			r.buf = r.buf[:have]
			return nil, err
		}
		r.off += int64(more)
	}
	return r.buf[r.pos:min(len(r.buf), r.pos+n)], nil
}

// header reads the next page's header. It returns io.EOF at the chunk's end.
func (r *pageReader) header() (pageHeader, error) {
	for n := 256; ; n *= 4 {
		b, err := r.fill(n)
		if err != nil {
			return pageHeader{}, err
		}
		if len(b) == 0 {
			return pageHeader{}, io.EOF
		}
		h, size, err := decodePageHeader(b)
		if errors.Is(err, errShort) && len(b) == n && n < maxHeaderBytes {
			continue
		}
		if err != nil {
			return h, fmt.Errorf("page header: %w", err)
		}
		r.pos += size
		return h, nil
	}
}

// next goes to the next data page. It returns io.EOF after the last.
func (r *pageReader) next() error {
	for {
		r.release()
		if r.entries == 0 {
			return io.EOF // some writers leave an empty page
		}
		h, err := r.header()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%d values are missing", r.entries)
		}
		if err != nil {
			return err
		}
		body, err := r.fill(int(h.compressed))
		if err != nil {
			return err
		}
		if len(body) < int(h.compressed) {
			return fmt.Errorf("page of %d bytes with %d left of the column", h.compressed, len(body))
		}
		r.pos += int(h.compressed)
		if err := h.check(body); err != nil {
			return err
		}
		switch {
		case h.kind == format.DictionaryPage && h.known:
			if r.dict != nil || r.seenData {
				return errors.New("dictionary after the first page")
			}
			if err := r.dictionary(&h, body); err != nil {
				return fmt.Errorf("dictionary: %w", err)
			}
			continue
		case h.kind == format.DataPage && h.known:
			err = r.version1(&h, body)
		case h.kind == format.DataPageV2 && h.known:
			err = r.version2(&h, body)
		case h.kind == format.IndexPage:
			continue
		default:
			return fmt.Errorf("page of kind %d", h.kind)
		}
		if err != nil {
			return err
		}
		r.seenData = true
		if int64(h.values) > r.entries {
			return fmt.Errorf("page of %d values where %d are left", h.values, r.entries)
		}
		r.entries -= int64(h.values)
		if r.left = int(h.values); r.left > 0 {
			return nil
		}
	}
}

func (r *pageReader) release() {
	r.budget.give(r.held)
	r.held = 0
}

// expand decompresses src to size bytes, valid until the next page is read.
func (r *pageReader) expand(src []byte, size int, codec format.CompressionCodec) ([]byte, error) {
	if codec == format.Uncompressed {
		if len(src) != size {
			return nil, wrongSize(len(src), size)
		}
		return src, nil
	}
	// No page of these grows by more; a header that says so asks for memory that
	// nothing would fill.
	if ratio := map[format.CompressionCodec]int{format.Snappy: 64, format.Gzip: 1100, format.Lz4Raw: 256}[codec]; ratio > 0 && size > ratio*(len(src)+64) {
		return nil, fmt.Errorf("page of %d bytes, decompressed %d", len(src), size)
	}
	if err := r.budget.take(r.node, int64(size)); err != nil {
		r.budget.give(int64(size))
		return nil, err
	}
	r.held += int64(size)
	if cap(r.body) < size+pagePadding {
		r.body = make([]byte, size+pagePadding)
	}
	dst := r.body[:size]
	if err := decompress(codec, dst, src); err != nil {
		return nil, fmt.Errorf("page: %w", err)
	}
	return dst, nil
}

func (r *pageReader) version1(h *pageHeader, body []byte) error {
	page, err := r.expand(body, int(h.uncompressed), r.codec)
	if err != nil {
		return err
	}
	if page, err = r.prefixed(&r.rep, page, r.node.maxRep(), h.repEncoding); err != nil {
		return fmt.Errorf("repetition levels: %w", err)
	}
	if page, err = r.prefixed(&r.def, page, r.node.def, h.defEncoding); err != nil {
		return fmt.Errorf("definition levels: %w", err)
	}
	return r.values.reset(r.node, h.encoding, page, int(h.values), r.dict)
}

// prefixed starts levels that have their length before them.
func (r *pageReader) prefixed(levels *hybrid, page []byte, greatest byte, how format.Encoding) ([]byte, error) {
	if greatest == 0 {
		return page, nil
	}
	if how != format.RLE {
		return nil, &UnsupportedError{r.node.name(), "levels encoded as " + how.String(), "write the file with a newer writer"}
	}
	if len(page) < 4 {
		return nil, errors.New("page ends early")
	}
	n := int64(little.Uint32(page))
	if n > int64(len(page)-4) {
		return nil, fmt.Errorf("%d bytes in a page with %d", n, len(page)-4)
	}
	levels.reset(page[4:4+n], bits.Len8(greatest))
	return page[4+n:], nil
}

func (r *pageReader) version2(h *pageHeader, body []byte) error {
	levels := int64(h.repBytes) + int64(h.defBytes)
	if levels > int64(len(body)) || levels > int64(h.uncompressed) || h.nulls < 0 || h.nulls > h.values {
		return fmt.Errorf("page of %d bytes has %d of levels; %d of %d values are null", len(body), levels, h.nulls, h.values)
	}
	// The levels stay where they are, in the buffer that was read; the next page is
	// read when this one is done.
	if r.node.maxRep() > 0 {
		r.rep.reset(body[:h.repBytes], bits.Len8(r.node.maxRep()))
	}
	if r.node.def > 0 {
		r.def.reset(body[h.repBytes:levels], bits.Len8(r.node.def))
	}
	codec := r.codec
	if h.plainValues {
		codec = format.Uncompressed
	}
	if int64(h.uncompressed) == levels && int64(len(body)) == levels {
		codec = format.Uncompressed // no values: some writers write nothing, not an empty frame
	}
	page, err := r.expand(body[levels:], int(int64(h.uncompressed)-levels), codec)
	if err != nil {
		return err
	}
	// The number of nulls is not used: writers count those of lists differently.
	return r.values.reset(r.node, h.encoding, page, int(h.values), r.dict)
}

func (r *pageReader) dictionary(h *pageHeader, body []byte) error {
	if h.encoding != format.Plain && h.encoding != plainDictionary {
		return fmt.Errorf("encoded as %v", h.encoding)
	}
	page, err := r.expand(body, int(h.uncompressed), r.codec)
	if err != nil {
		return err
	}
	r.dict, err = newDictionaryPage(r.node, page, int(h.values), r.budget)
	return err
}
