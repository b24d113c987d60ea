package flight

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that this one extends
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of FlightData in Flight.proto.
const (
	fieldHeader = 2
	fieldMeta   = 3
	fieldBody   = 1000
)

// codec encodes FlightData without the copies that the generated code makes, and
// leaves all other messages to the usual codec, under whose name it goes: what
// is on the wire is the same.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2("proto")} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*outgoing); ok {
		return m.take(), nil
	}
	return c.CodecV2.Marshal(v)
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if m, ok := v.(*incoming); ok {
		return m.parse(data)
	}
	return c.CodecV2.Unmarshal(data, v)
}

// outgoing is a FlightData to be sent. The body belongs to gRPC once it is taken.
type outgoing struct {
	head []byte     // everything before the body
	body mem.Buffer // nil: none
}

func newOutgoing(header, meta []byte, bodyLen int) *outgoing {
	b := make([]byte, 0, len(header)+len(meta)+32)
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	b = protowire.AppendBytes(b, header)
	if len(meta) > 0 {
		b = protowire.AppendTag(b, fieldMeta, protowire.BytesType)
		b = protowire.AppendBytes(b, meta)
	}
	// An empty body is sent too: some clients tell it from none.
	b = protowire.AppendTag(b, fieldBody, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(bodyLen))
	return &outgoing{head: b}
}

func (m *outgoing) take() mem.BufferSlice {
	out := mem.BufferSlice{mem.SliceBuffer(m.head)}
	if m.body != nil {
		out = append(out, m.body)
		m.body = nil
	}
	return out
}

// drop frees a body that gRPC has not taken.
func (m *outgoing) drop() {
	if m.body != nil {
		m.body.Free()
		m.body = nil
	}
}

// incoming is a FlightData being received. Its body goes straight to where place
// says.
type incoming struct {
	limit int // bytes of header and of metadata, each
	// place returns bodyLen bytes for the body. It is called once with each message,
	// header and metadata read before.
	place func(header, meta []byte, bodyLen int) ([]byte, error)

	header, meta []byte
	// err is what was wrong with the message. It is not returned to gRPC, which
	// would make a status of it and lose what it wraps.
	err error
}

var errWire = errors.New("malformed FlightData")

// parse reads a message. It always returns nil: what is wrong is in err.
func (m *incoming) parse(data mem.BufferSlice) error {
	m.header, m.meta = nil, nil
	m.err = m.read(&cursor{rest: data, left: data.Len()})
	return nil
}

// read reads the protobuf encoding. It is stricter than protobuf: no field comes
// twice, and the body comes last, as every encoder writes them.
func (m *incoming) read(c *cursor) error {
	last := uint64(0)
	for c.left > 0 {
		tag, err := c.varint()
		if err != nil {
			return err
		}
		field, kind := tag>>3, protowire.Type(tag&7)
		if kind != protowire.BytesType {
			return fmt.Errorf("%w: field %d of wire type %d", errWire, field, kind)
		}
		if field <= last {
			return fmt.Errorf("%w: field %d after %d", errWire, field, last)
		}
		last = field
		n, err := c.varint()
		if err != nil {
			return err
		}
		if n > uint64(c.left) {
			return fmt.Errorf("%w: field %d of %d bytes, %d left", errWire, field, n, c.left)
		}
		switch {
		case field == fieldHeader || field == fieldMeta:
			if n > uint64(m.limit) {
				return fmt.Errorf("%w: field %d of %d bytes: at most %d", errWire, field, n, m.limit)
			}
			b := make([]byte, n)
			c.copy(b)
			if field == fieldHeader {
				m.header = b
			} else {
				m.meta = b
			}
		case field == fieldBody:
			dst, err := m.place(m.header, m.meta, int(n))
			if err != nil {
				return err
			}
			c.copy(dst)
		case field > fieldBody:
			return fmt.Errorf("%w: field %d after the body", errWire, field)
		default:
			c.skip(int(n)) // the descriptor, which a DoGet has no use for
		}
	}
	if last < fieldBody {
		_, err := m.place(m.header, m.meta, 0)
		return err
	}
	return nil
}

// cursor reads a message that lies in pieces.
type cursor struct {
	rest mem.BufferSlice
	at   int // in the first piece
	left int
}

func (c *cursor) piece() []byte {
	for {
		p := c.rest[0].ReadOnlyData()[c.at:]
		if len(p) > 0 {
			return p
		}
		c.rest, c.at = c.rest[1:], 0
	}
}

// varint reads one. It is called with bytes left or not.
func (c *cursor) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		if c.left == 0 {
			return 0, fmt.Errorf("%w: truncated", errWire)
		}
		b := c.piece()[0]
		c.at++
		c.left--
		if shift == 63 && b > 1 {
			break
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: number over 64 bits", errWire)
}

// copy fills dst; the caller has compared with left.
func (c *cursor) copy(dst []byte) {
	for len(dst) > 0 {
		n := copy(dst, c.piece())
		dst = dst[n:]
		c.at += n
		c.left -= n
	}
}

func (c *cursor) skip(n int) {
	for n > 0 {
		k := min(n, len(c.piece()))
		c.at += k
		c.left -= k
		n -= k
	}
}
