package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Version is the version of the peers protocol that this package speaks.
const Version = 1

const (
	magic         = 0x504B5453 // "STKP", little-endian
	flagFence     = 1 << 0     // in hello: may be killed when stopped with leases
	maxReleases   = 1024       // tokens in one message
	maxReason     = 1024       // bytes of text in a message
	statusPiece   = 32 << 10   // bytes of JSON in one message
	maxStatusPart = 64
)

// The messages of the peers protocol; docs/HANDOFF.md specifies them. Those below
// 32 come from the client.
const (
	kindHello   Kind = 1
	kindLease   Kind = 2
	kindRelease Kind = 3
	kindPong    Kind = 4
	kindGoodbye Kind = 5
	kindInspect Kind = 6

	kindWelcome Kind = 32
	kindArena   Kind = 33
	kindForget  Kind = 34
	kindLeased  Kind = 35
	kindRefused Kind = 36
	kindPing    Kind = 37
	kindLeave   Kind = 38
	kindError   Kind = 39
	kindStatus  Kind = 40
)

// peerCarries says how many descriptors a message of the peers protocol carries.
func peerCarries(k Kind) int {
	if k == kindArena {
		return 1
	}
	return 0
}

// Code says in refused and error messages why.
type Code uint32

// The codes. CodeGone to CodeClosing are of refused; from CodeProtocol on they are
// of error.
const (
	CodeGone     Code = 1 // no such slot (any more)
	CodeQuota    Code = 2 // a limit of the connection: release something first
	CodeClosing  Code = 3 // the owner is closing
	CodeInternal Code = 4 // the owner could not, e.g. for want of descriptors

	CodeProtocol Code = 16 // the peer broke the protocol
	CodeVersion  Code = 17 // the peer speaks a version that this side does not
	CodeBusy     Code = 18 // too many connections
	CodeStalled  Code = 19 // the peer did not answer in time
)

// ErrVersion means: the two sides speak no common version of the protocol.
var ErrVersion = errors.New("handoff protocol version not spoken")

// hello is the client's first message.
type hello struct {
	version uint32
	pid     uint32
	flags   uint32
}

func (m hello) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = binary.LittleEndian.AppendUint32(b, m.version)
	b = binary.LittleEndian.AppendUint32(b, m.pid)
	return binary.LittleEndian.AppendUint32(b, m.flags)
}

// decodeHello accepts longer messages of other versions, so that those are told
// apart from nonsense.
func decodeHello(b []byte) (m hello, err error) {
	f := Read(b)
	if f.U32() != magic {
		f.Fail("not a hello")
	}
	m.version = f.U32()
	if f.err == nil && m.version != Version {
		return m, fmt.Errorf("%w: the client speaks %d, this side %d", ErrVersion, m.version, Version)
	}
	m.pid, m.flags = f.U32(), f.U32()
	if m.flags&^flagFence != 0 {
		f.Fail("flags %#x of hello", m.flags)
	}
	return m, f.End()
}

// welcome is the server's answer to hello.
type welcome struct {
	version   uint32
	pid       uint32
	heartbeat uint32 // ms between pings
	stall     uint32 // ms of silence after which a side is given up
	leases    uint32 // at most held or asked for at once
	bytes     uint64 // at most leased at once
}

func (m welcome) append(b []byte) []byte {
	for _, v := range []uint32{magic, m.version, m.pid, m.heartbeat, m.stall, m.leases} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return binary.LittleEndian.AppendUint64(b, m.bytes)
}

func decodeWelcome(b []byte) (m welcome, err error) {
	f := Read(b)
	if f.U32() != magic {
		f.Fail("not a welcome")
	}
	m.version = f.U32()
	if f.err == nil && m.version != Version {
		return m, fmt.Errorf("%w: the server speaks %d, this side %d", ErrVersion, m.version, Version)
	}
	m.pid, m.heartbeat, m.stall, m.leases = f.U32(), f.U32(), f.U32(), f.U32()
	m.bytes = f.U64()
	if m.leases == 0 || m.leases > maxCredit || m.heartbeat == 0 || m.stall <= m.heartbeat || m.stall > 1<<22 {
		f.Fail("limits of welcome: %d leases, heartbeat %d ms, given up after %d ms", m.leases, m.heartbeat, m.stall)
	}
	return m, f.End()
}

// maxCredit is the most leases that a connection may be allowed: each costs the
// client an entry made in advance.
const maxCredit = 1 << 16

// slotName is a Handle in binary.
type slotName struct {
	arena      [16]byte
	offset     int64
	length     int64
	generation uint64
}

func (m slotName) append(b []byte) []byte {
	b = append(b, m.arena[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.length))
	return binary.LittleEndian.AppendUint64(b, m.generation)
}

func decodeSlotName(b []byte) (m slotName, err error) {
	f := Read(b)
	copy(m.arena[:], f.Next(16))
	m.offset, m.length, m.generation = f.Size(), f.Size(), f.U64()
	if m.length == 0 {
		f.Fail("slot of 0 bytes")
	}
	return m, f.End()
}

// appendRelease encodes a release of 1 to maxReleases tokens.
func appendRelease(b []byte, tokens []uint64) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(tokens)))
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint64(b, t)
	}
	return b
}

// releases is a decoded release; it reads from the packet.
type releases struct{ b []byte }

func decodeRelease(b []byte) (releases, error) {
	f := Read(b)
	n, zero := f.U32(), f.U32()
	if n == 0 || n > maxReleases || zero != 0 {
		f.Fail("release of %d leases: 1 to %d", n, maxReleases)
	}
	if f.err != nil {
		return releases{}, f.err
	}
	r := releases{f.Next(int(n) * 8)}
	return r, f.End()
}

func (r releases) len() int           { return len(r.b) / 8 }
func (r releases) token(i int) uint64 { return binary.LittleEndian.Uint64(r.b[i*8:]) }

func appendU64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

func decodeU64(b []byte) (uint64, error) {
	f := Read(b)
	v := f.U64()
	return v, f.End()
}

func decodeID(b []byte) (id [16]byte, err error) {
	f := Read(b)
	copy(id[:], f.Next(16))
	return id, f.End()
}

// notice is refused or error: a code and text for people.
type notice struct {
	code Code
	text string
}

func (m notice) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.code))
	return append(append(b, 0, 0, 0, 0), clip(m.text)...)
}

func decodeNotice(b []byte) (m notice, err error) {
	f := Read(b)
	m.code = Code(f.U32())
	if f.U32() != 0 {
		f.Fail("reserved field is not 0")
	}
	if f.err != nil {
		return m, f.err
	}
	m.text, err = decodeText(f.b)
	return m, err
}

func decodeText(b []byte) (string, error) {
	if len(b) > maxReason || !utf8.Valid(b) {
		return "", Violation("text of %d bytes: want UTF-8 of at most %d", len(b), maxReason)
	}
	return string(b), nil
}

// clip cuts text to maxReason bytes of UTF-8.
func clip(s string) string {
	if len(s) > maxReason {
		s = s[:maxReason]
		for len(s) > 0 && !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// piece is a part of a status.
type piece struct {
	part, parts uint32
	json        []byte
}

func (m piece) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.part)
	b = binary.LittleEndian.AppendUint32(b, m.parts)
	return append(b, m.json...)
}

func decodePiece(b []byte) (m piece, err error) {
	f := Read(b)
	m.part, m.parts = f.U32(), f.U32()
	if m.parts == 0 || m.parts > maxStatusPart || m.part >= m.parts {
		f.Fail("part %d of %d of a status", m.part, m.parts)
	}
	m.json = f.b
	if len(m.json) > statusPiece {
		f.Fail("part of a status of %d bytes: at most %d", len(m.json), statusPiece)
	}
	return m, f.err
}
