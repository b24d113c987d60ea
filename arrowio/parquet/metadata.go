package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

const (
	magic          = "PAR1"
	encryptedMagic = "PARE"
	// maxFooterBytes bounds the metadata that is read before anything is known of it.
	maxFooterBytes = 256 << 20
	// maxHeaderBytes bounds a page's header; statistics of long strings make it long.
	maxHeaderBytes = 1 << 20
)

// metadata is what the reader needs of a file's footer.
type metadata struct {
	schema     []element
	rows       int64
	groups     []rowGroup
	keyValues  [][2]string
	ordered    []bool // by leaf: its statistics follow the type's order
	hasOrders  bool
	footerSize int
}

// element is a node of the Parquet schema, parents before children.
type element struct {
	name       string
	physical   format.Type
	leaf       bool // has a physical type
	length     int32
	repetition format.FieldRepetitionType
	children   int32
	fieldID    int32
	hasFieldID bool
	converted  deprecated.ConvertedType
	hasConv    bool
	scale      int32
	precision  int32
	logical    logical
}

// logical is a logical type: the number of its case in the union, and what that
// case holds.
type logical struct {
	id        int16 // 0 for none
	scale     int32
	precision int32
	bits      int8
	signed    bool
	utc       bool
	unit      int16 // 1 ms, 2 us, 3 ns
}

// Cases of the union LogicalType.
const (
	logicalString    = 1
	logicalMap       = 2
	logicalList      = 3
	logicalEnum      = 4
	logicalDecimal   = 5
	logicalDate      = 6
	logicalTime      = 7
	logicalTimestamp = 8
	logicalInt       = 10
	logicalNull      = 11
	logicalJSON      = 12
	logicalBSON      = 13
	logicalUUID      = 14
	logicalFloat16   = 15
)

type rowGroup struct {
	rows   int64
	chunks []chunk
}

// chunk is a column of a row group.
type chunk struct {
	external     bool // in another file
	encrypted    bool
	physical     format.Type
	codec        format.CompressionCodec
	values       int64
	compressed   int64
	uncompressed int64
	dataPage     int64
	dictPage     int64 // 0 for none
	stats        statistics
}

// statistics of a column chunk. Values are in Parquet's plain encoding, byte
// arrays without their length.
type statistics struct {
	min, max           []byte // nil if absent
	oldMin, oldMax     []byte // of deprecated fields, whose order is that of signed integers
	nulls              int64  // -1 if absent
	inexactMin, exact  bool   // exact: the flags are there, and say that both are values of the column
	flagMin, flagMax   bool
	inexactMax, hasAny bool
}

// readMetadata reads the footer of a file of size bytes.
func readMetadata(r io.ReaderAt, size int64) (*metadata, error) {
	if size < int64(len(magic)*2+4) {
		return nil, fmt.Errorf("file of %d bytes", size)
	}
	var tail [8]byte
	if err := readAt(r, tail[:], size-8); err != nil {
		return nil, err
	}
	switch string(tail[4:]) {
	case magic:
	case encryptedMagic:
		return nil, &UnsupportedError{"", "encrypted", "decrypt the file first"}
	default:
		return nil, errors.New("does not end as a Parquet file: it may be cut off")
	}
	n := int64(binary.LittleEndian.Uint32(tail[:]))
	if n > size-12 || n > maxFooterBytes {
		return nil, fmt.Errorf("footer of %d bytes in a file of %d", n, size)
	}
	// Head and footer in one read where the file is small.
	var head [4]byte
	if err := readAt(r, head[:], 0); err != nil {
		return nil, err
	}
	if string(head[:]) != magic {
		return nil, errors.New("does not begin as a Parquet file")
	}
	footer, err := readGrowing(r, size-8-n, n)
	if err != nil {
		return nil, err
	}
	m := &metadata{footerSize: int(n)}
	c := &compact{b: footer}
	m.decode(c)
	if c.err != nil {
		return nil, fmt.Errorf("footer: %w", c.err)
	}
	return m, nil
}

// readAt fills p. Ending early is the file's fault, not the reader's.
func readAt(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// readGrowing reads n bytes without trusting n: memory grows with what is there.
func readGrowing(r io.ReaderAt, off, n int64) ([]byte, error) {
	const step = 1 << 20
	var b []byte
	for int64(len(b)) < n {
		at := len(b)
		b = append(b, make([]byte, min(step, n-int64(at)))...)
		if err := readAt(r, b[at:], off+int64(at)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (m *metadata) decode(c *compact) {
	c.structure(func() {
		switch c.id {
		case 2:
			c.list(func() { m.schema = append(m.schema, decodeElement(c)) })
		case 3:
			m.rows = c.i64()
		case 4:
			c.list(func() { m.groups = append(m.groups, decodeRowGroup(c)) })
		case 5:
			c.list(func() {
				var kv [2]string
				c.nested(func() {
					switch c.id {
					case 1, 2:
						kv[c.id-1] = c.string()
					default:
						c.skip()
					}
				})
				m.keyValues = append(m.keyValues, kv)
			})
		case 7:
			m.hasOrders = true
			c.list(func() {
				byType := false
				c.nested(func() {
					byType = c.id == 1
					c.skip()
				})
				m.ordered = append(m.ordered, byType)
			})
		case 8:
			c.fail(errors.New("columns are encrypted"))
		default:
			c.skip()
		}
	})
}

func decodeElement(c *compact) (e element) {
	c.nested(func() {
		switch c.id {
		case 1:
			e.physical, e.leaf = format.Type(c.i32()), true
		case 2:
			e.length = c.i32()
		case 3:
			e.repetition = format.FieldRepetitionType(c.i32())
		case 4:
			e.name = c.string()
		case 5:
			e.children = c.i32()
		case 6:
			e.converted, e.hasConv = deprecated.ConvertedType(c.i32()), true
		case 7:
			e.scale = c.i32()
		case 8:
			e.precision = c.i32()
		case 9:
			e.fieldID, e.hasFieldID = c.i32(), true
		case 10:
			c.nested(func() { e.logical = decodeLogical(c) })
		default:
			c.skip()
		}
	})
	// Nothing shorter than a name is a node: a list of empty ones would take much
	// more memory than its bytes.
	if c.err == nil && e.leaf && e.children != 0 {
		c.fail(fmt.Errorf("column %.80q is of type %v and has %d children", e.name, e.physical, e.children))
	}
	return e
}

// decodeLogical reads the case of the union that the field is.
func decodeLogical(c *compact) (l logical) {
	l.id = c.id
	id := c.id
	c.nested(func() {
		switch {
		case id == logicalDecimal && c.id == 1:
			l.scale = c.i32()
		case id == logicalDecimal && c.id == 2:
			l.precision = c.i32()
		case id == logicalInt && c.id == 1:
			l.bits = c.i8()
		case id == logicalInt && c.id == 2:
			l.signed = c.bool()
		case (id == logicalTime || id == logicalTimestamp) && c.id == 1:
			l.utc = c.bool()
		case (id == logicalTime || id == logicalTimestamp) && c.id == 2:
			c.nested(func() {
				l.unit = c.id
				c.skip()
			})
		default:
			c.skip()
		}
	})
	return l
}

func decodeRowGroup(c *compact) (g rowGroup) {
	c.nested(func() {
		switch c.id {
		case 1:
			c.list(func() {
				if len(c.b) < 8 {
					c.fail(errShort)
					return
				}
				g.chunks = append(g.chunks, decodeChunk(c))
			})
		case 3:
			g.rows = c.i64()
		default:
			c.skip()
		}
	})
	return g
}

func decodeChunk(c *compact) (k chunk) {
	k.stats.nulls = -1
	described := false
	c.nested(func() {
		switch c.id {
		case 1:
			k.external = len(c.bytes()) > 0
		case 3:
			described = true
			c.nested(func() { decodeColumnMetadata(c, &k) })
		case 8, 9:
			k.encrypted = true
			c.skip()
		default:
			c.skip()
		}
	})
	if c.err == nil && !described && !k.encrypted {
		c.fail(errors.New("column chunk without metadata"))
	}
	return k
}

func decodeColumnMetadata(c *compact, k *chunk) {
	switch c.id {
	case 1:
		k.physical = format.Type(c.i32())
	case 4:
		k.codec = format.CompressionCodec(c.i32())
	case 5:
		k.values = c.i64()
	case 6:
		k.uncompressed = c.i64()
	case 7:
		k.compressed = c.i64()
	case 9:
		k.dataPage = c.i64()
	case 11:
		k.dictPage = c.i64()
	case 12:
		s := &k.stats
		c.nested(func() {
			switch c.id {
			case 1:
				s.oldMax = present(c.bytes())
			case 2:
				s.oldMin = present(c.bytes())
			case 3:
				s.nulls = c.i64()
			case 5:
				s.max = present(c.bytes())
			case 6:
				s.min = present(c.bytes())
			case 7:
				s.inexactMax, s.flagMax = !c.bool(), true
			case 8:
				s.inexactMin, s.flagMin = !c.bool(), true
			default:
				c.skip()
			}
		})
		s.exact = s.flagMin && s.flagMax && !s.inexactMin && !s.inexactMax
	default:
		c.skip()
	}
}

// present makes what is there, but empty, differ from what is not there.
func present(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// pageHeader is the header of a page.
type pageHeader struct {
	kind         format.PageType
	uncompressed int32
	compressed   int32
	crc          uint32
	hasCRC       bool
	values       int32
	nulls, rows  int32 // of version 2
	encoding     format.Encoding
	defEncoding  format.Encoding
	repEncoding  format.Encoding
	defBytes     int32
	repBytes     int32
	plainValues  bool // of version 2: values are not compressed
	known        bool
}

// decodePageHeader reads a page's header and returns its length in bytes.
// errShort means that b may be too short.
func decodePageHeader(b []byte) (h pageHeader, n int, err error) {
	c := &compact{b: b}
	c.structure(func() {
		switch c.id {
		case 1:
			h.kind = format.PageType(c.i32())
		case 2:
			h.uncompressed = c.i32()
		case 3:
			h.compressed = c.i32()
		case 4:
			h.crc, h.hasCRC = uint32(c.i32()), true
		case 5, 7:
			h.known = true
			c.nested(func() {
				switch c.id {
				case 1:
					h.values = c.i32()
				case 2:
					h.encoding = format.Encoding(c.i32())
				case 3:
					if c.typ == thriftTrue || c.typ == thriftFalse { // a dictionary's is_sorted
						return
					}
					h.defEncoding = format.Encoding(c.i32())
				case 4:
					h.repEncoding = format.Encoding(c.i32())
				default:
					c.skip()
				}
			})
		case 8:
			h.known = true
			c.nested(func() {
				switch c.id {
				case 1:
					h.values = c.i32()
				case 2:
					h.nulls = c.i32()
				case 3:
					h.rows = c.i32()
				case 4:
					h.encoding = format.Encoding(c.i32())
				case 5:
					h.defBytes = c.i32()
				case 6:
					h.repBytes = c.i32()
				case 7:
					h.plainValues = !c.bool()
				default:
					c.skip()
				}
			})
		default:
			c.skip()
		}
	})
	if c.err != nil {
		return h, 0, c.err
	}
	if h.uncompressed < 0 || h.compressed < 0 || h.values < 0 || h.defBytes < 0 || h.repBytes < 0 || h.rows < 0 {
		return h, 0, fmt.Errorf("page of %d bytes, %d decompressed, with %d values", h.compressed, h.uncompressed, h.values)
	}
	return h, len(b) - len(c.b), nil
}

func (h *pageHeader) check(body []byte) error {
	if h.hasCRC && crc32.ChecksumIEEE(body) != h.crc {
		return errors.New("page differs from its checksum")
	}
	return nil
}

// valid reports faults of the footer that would make the rest of it meaningless.
func (m *metadata) valid(size int64, leaves int) error {
	if m.rows < 0 {
		return fmt.Errorf("file of %d rows", m.rows)
	}
	total := int64(0)
	for i, g := range m.groups {
		if g.rows < 0 || g.rows > math.MaxInt64-total {
			return fmt.Errorf("row group %d of %d rows", i, g.rows)
		}
		total += g.rows
		if len(g.chunks) != leaves {
			return fmt.Errorf("row group %d of %d columns, want %d", i, len(g.chunks), leaves)
		}
		for j, k := range g.chunks {
			from := k.start()
			if k.external || k.encrypted {
				continue // refused when it is read
			}
			if from < int64(len(magic)) || k.compressed < 0 || from > size || k.compressed > size-from {
				return fmt.Errorf("row group %d, column %d: %d bytes at %d of a file of %d", i, j, k.compressed, from, size)
			}
		}
	}
	if total != m.rows {
		return fmt.Errorf("file of %d rows, its row groups have %d", m.rows, total)
	}
	return nil
}

// start is where the chunk's first page is.
func (k *chunk) start() int64 {
	if k.dictPage > 0 && k.dictPage < k.dataPage {
		return k.dictPage
	}
	return k.dataPage
}
