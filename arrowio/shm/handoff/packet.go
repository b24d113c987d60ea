package handoff

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

const (
	// HeaderBytes is the size of the header that every message begins with.
	HeaderBytes = 16
	// MaxPacket is the size in bytes of the largest message, header included.
	MaxPacket = 64 << 10
)

// Kind tells messages apart. Which kinds there are, and who sends them, is the
// protocol's that is spoken on the connection.
type Kind uint16

// ErrProtocol means: the peer sent something that the protocol does not allow. The
// connection is over.
var ErrProtocol = errors.New("handoff protocol violated")

// Violation returns an error that wraps ErrProtocol.
func Violation(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// Packet is one message: a header of HeaderBytes and a payload.
type Packet struct {
	Kind    Kind
	Job     uint32 // what the message belongs to; 0 for the connection itself
	Payload []byte
	FDs     []int // descriptors that came with it; the receiver's to close
}

// CloseFDs closes the descriptors that came with the packet.
func (p *Packet) CloseFDs() {
	closeAll(p.FDs)
	p.FDs = nil
}

// Append encodes a message after b. The error says so if it is too large.
func Append(b []byte, k Kind, job uint32, payload []byte) ([]byte, error) {
	if len(payload) > MaxPacket-HeaderBytes {
		return nil, fmt.Errorf("handoff: message of %d bytes: at most %d fit; pass large values by reference", len(payload), MaxPacket-HeaderBytes)
	}
	b = binary.LittleEndian.AppendUint16(b, uint16(k))
	b = append(b, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, job)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(append(b, 0, 0, 0, 0), payload...), nil
}

// Decode reads one message; the payload is part of b. The error wraps
// ErrProtocol.
func Decode(b []byte) (Packet, error) {
	if len(b) < HeaderBytes {
		return Packet{}, Violation("packet of %d bytes", len(b))
	}
	p := Packet{Kind: Kind(binary.LittleEndian.Uint16(b)), Job: binary.LittleEndian.Uint32(b[4:]), Payload: b[HeaderBytes:]}
	if binary.LittleEndian.Uint16(b[2:]) != 0 || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return Packet{}, Violation("reserved header fields are not 0")
	}
	if n := binary.LittleEndian.Uint32(b[8:]); int64(n) != int64(len(p.Payload)) {
		return Packet{}, Violation("payload of %d bytes, stated %d", len(p.Payload), n)
	}
	return p, nil
}

// Fields reads the fixed fields of a payload in order. It remembers the first
// fault; after one every read gives zeros.
type Fields struct {
	b   []byte
	err error
}

// Read starts to read payload.
func Read(payload []byte) Fields { return Fields{b: payload} }

// Next returns the next n bytes.
func (f *Fields) Next(n int) []byte {
	if f.err != nil || len(f.b) < n {
		f.Fail("payload too short")
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

// U16 reads an unsigned integer of 2 bytes.
func (f *Fields) U16() uint16 { return binary.LittleEndian.Uint16(f.Next(2)) }

// U32 reads an unsigned integer of 4 bytes.
func (f *Fields) U32() uint32 { return binary.LittleEndian.Uint32(f.Next(4)) }

// U64 reads an unsigned integer of 8 bytes.
func (f *Fields) U64() uint64 { return binary.LittleEndian.Uint64(f.Next(8)) }

// Size reads a size or offset in bytes, at most 2^62, so that the sum of two does
// not overflow.
func (f *Fields) Size() int64 {
	v := f.U64()
	if v > 1<<62 {
		f.Fail("size %d", v)
	}
	return int64(v & (1<<62 - 1))
}

// Fail notes a violation, if it is the first.
func (f *Fields) Fail(format string, args ...any) {
	if f.err == nil {
		f.err = Violation(format, args...)
	}
}

// End returns the first fault, one of which is that bytes are left.
func (f *Fields) End() error {
	if f.err == nil && len(f.b) != 0 {
		f.err = Violation("%d bytes too many in the payload", len(f.b))
	}
	return f.err
}

// ArenaGrant makes an arena known to the receiver; its descriptor comes along.
type ArenaGrant struct {
	ID   [16]byte
	Size int64 // bytes
}

// Encode returns the payload.
func (m ArenaGrant) Encode() []byte {
	return binary.LittleEndian.AppendUint64(append([]byte(nil), m.ID[:]...), uint64(m.Size))
}

// DecodeArenaGrant reads the payload.
func DecodeArenaGrant(b []byte) (m ArenaGrant, err error) {
	f := Read(b)
	copy(m.ID[:], f.Next(16))
	m.Size = f.Size()
	return m, f.End()
}

// ArenaID turns an arena's id into its 16 bytes.
func ArenaID(id string) (b [16]byte, err error) {
	if n, err := hex.Decode(b[:], []byte(id)); len(id) != 32 || err != nil || n != 16 {
		return b, fmt.Errorf("handoff: arena id %q is not 32 hexadecimal digits", id)
	}
	return b, nil
}
