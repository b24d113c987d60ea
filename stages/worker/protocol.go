package worker

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// The numbers here are docs/WORKER-PROTOCOL.md; change both or neither.
const (
	protocolVersion = 1
	magic           = 0x574B5453 // "STKW" in memory
	headerBytes     = 16
	maxPacket       = 64 << 10
	maxReleases     = 1024    // tokens in one release
	maxText         = 8 << 10 // of an error or log message: JSON may need six bytes for one
	outputWindow    = 4       // outputs not yet acknowledged
	socketFD        = 3
	childEnv        = "STOKEHOLD_WORKER"
)

type kind uint16

const (
	// host to child
	kindHello   kind = 1
	kindArena   kind = 2
	kindForget  kind = 3
	kindTask    kind = 4
	kindBatch   kind = 5
	kindEnd     kind = 6
	kindAck     kind = 7
	kindCancel  kind = 8
	kindPing    kind = 9
	kindGoodbye kind = 10
	// child to host
	kindReady    kind = 32
	kindRelease  kind = 33
	kindOutput   kind = 34
	kindProgress kind = 35
	kindLog      kind = 36
	kindMetrics  kind = 37
	kindDone     kind = 38
	kindFailed   kind = 39
	kindPong     kind = 40
	kindOpen     kind = 41
)

// ErrProtocol means: the peer sent something that the protocol does not allow. The
// connection is over.
var ErrProtocol = errors.New("worker protocol violated")

func violation(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...)
}

// packet is one message: a header of 16 bytes and a payload.
type packet struct {
	kind    kind
	job     uint32
	payload []byte
	fds     []int
}

func encodePacket(k kind, job uint32, payload []byte) ([]byte, error) {
	if len(payload) > maxPacket-headerBytes {
		return nil, fmt.Errorf("worker: message of %d bytes: at most %d fit; pass large values by reference", len(payload), maxPacket-headerBytes)
	}
	b := make([]byte, headerBytes, headerBytes+len(payload))
	binary.LittleEndian.PutUint16(b, uint16(k))
	binary.LittleEndian.PutUint32(b[4:], job)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(payload)))
	return append(b, payload...), nil
}

func decodePacket(b []byte) (packet, error) {
	if len(b) < headerBytes {
		return packet{}, violation("packet of %d bytes", len(b))
	}
	p := packet{kind: kind(binary.LittleEndian.Uint16(b)), job: binary.LittleEndian.Uint32(b[4:]), payload: b[headerBytes:]}
	if binary.LittleEndian.Uint16(b[2:]) != 0 || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return packet{}, violation("reserved header fields are not 0")
	}
	if n := binary.LittleEndian.Uint32(b[8:]); int64(n) != int64(len(p.payload)) {
		return packet{}, violation("payload of %d bytes, stated %d", len(p.payload), n)
	}
	return p, nil
}

// fields reads or writes the fixed fields of a payload in order.
type fields struct {
	b   []byte
	err error
}

func (f *fields) next(n int) []byte {
	if f.err != nil || len(f.b) < n {
		if f.err == nil {
			f.err = violation("payload too short")
		}
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) u16() uint16 { return binary.LittleEndian.Uint16(f.next(2)) }
func (f *fields) u32() uint32 { return binary.LittleEndian.Uint32(f.next(4)) }
func (f *fields) u64() uint64 { return binary.LittleEndian.Uint64(f.next(8)) }

func (f *fields) size() int64 {
	v := f.u64()
	if v > 1<<62 && f.err == nil {
		f.err = violation("size %d", v)
	}
	return int64(v & (1<<62 - 1))
}

func (f *fields) end() error {
	if f.err == nil && len(f.b) != 0 {
		f.err = violation("%d bytes too many in the payload", len(f.b))
	}
	return f.err
}

type hello struct{ heartbeatMillis uint32 }

func (m hello) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint32(b, protocolVersion)
	return binary.LittleEndian.AppendUint32(b, m.heartbeatMillis)
}

// decodeHello reads hello (host) and ready (child), which have the same layout;
// in ready the last field is the process id as the child sees it.
func decodeHello(b []byte) (hello, error) {
	f := fields{b: b}
	if f.u32() != magic && f.err == nil {
		f.err = violation("not a Stokehold worker socket")
	}
	if v := f.u32(); v != protocolVersion && f.err == nil {
		f.err = violation("version %d, this side speaks %d", v, protocolVersion)
	}
	m := hello{f.u32()}
	return m, f.end()
}

type arenaGrant struct {
	id   [16]byte
	size int64
}

func (m arenaGrant) encode() []byte {
	return binary.LittleEndian.AppendUint64(append([]byte(nil), m.id[:]...), uint64(m.size))
}

func decodeArenaGrant(b []byte) (m arenaGrant, err error) {
	f := fields{b: b}
	copy(m.id[:], f.next(16))
	m.size = f.size()
	return m, f.end()
}

func arenaID(id string) (b [16]byte, err error) {
	if n, err := hex.Decode(b[:], []byte(id)); len(id) != 32 || err != nil || n != 16 {
		return b, fmt.Errorf("worker: arena id %q is not 32 hexadecimal digits", id)
	}
	return b, nil
}

type batchLease struct {
	input    uint16
	sequence uint64
	token    uint64
	handle   shm.Handle
}

func (m batchLease) encode() ([]byte, error) {
	id, err := arenaID(m.handle.Arena)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint16(nil, m.input)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, m.sequence)
	b = binary.LittleEndian.AppendUint64(b, m.token)
	b = append(b, id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.handle.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.handle.Length))
	return binary.LittleEndian.AppendUint64(b, m.handle.Generation), nil
}

func decodeBatchLease(b []byte) (batchLease, error) {
	f := fields{b: b}
	m := batchLease{input: f.u16()}
	f.next(6)
	m.sequence, m.token = f.u64(), f.u64()
	m.handle.Arena = hex.EncodeToString(f.next(16))
	m.handle.Offset, m.handle.Length, m.handle.Generation = f.size(), f.size(), f.u64()
	return m, f.end()
}

// openNote asks for sequences from..to-1 of an input.
type openNote struct {
	input    uint16
	from, to uint64
}

func (m openNote) encode() []byte {
	b := binary.LittleEndian.AppendUint16(nil, m.input)
	b = append(b, 0, 0, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, m.from)
	return binary.LittleEndian.AppendUint64(b, m.to)
}

func decodeOpenNote(b []byte) (openNote, error) {
	f := fields{b: b}
	m := openNote{input: f.u16()}
	f.next(6)
	m.from, m.to = f.u64(), f.u64()
	return m, f.end()
}

func encodeTokens(tokens []uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(tokens)))
	b = append(b, 0, 0, 0, 0)
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint64(b, t)
	}
	return b
}

func decodeTokens(b []byte) ([]uint64, error) {
	f := fields{b: b}
	n := f.u32()
	f.next(4)
	if n == 0 || n > maxReleases {
		return nil, violation("release of %d leases: 1 to %d", n, maxReleases)
	}
	tokens := make([]uint64, 0, n)
	for range n {
		tokens = append(tokens, f.u64())
	}
	return tokens, f.end()
}

type outputNote struct {
	sequence     uint64
	size, length int64
}

func (m outputNote) encode() []byte {
	b := binary.LittleEndian.AppendUint64(nil, m.sequence)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.size))
	return binary.LittleEndian.AppendUint64(b, uint64(m.length))
}

func decodeOutputNote(b []byte) (outputNote, error) {
	f := fields{b: b}
	m := outputNote{f.u64(), f.size(), f.size()}
	return m, f.end()
}

// doneNote ends a job well: body bytes that the child wrote into segments, and
// body bytes that it had to copy out of leased memory (0, it counts).
type doneNote struct{ written, copied uint64 }

func (m doneNote) encode() []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, m.written), m.copied)
}

func decodeDoneNote(b []byte) (doneNote, error) {
	f := fields{b: b}
	m := doneNote{f.u64(), f.u64()}
	return m, f.end()
}

func encodeU64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func decodeU64(b []byte) (uint64, error) {
	f := fields{b: b}
	v := f.u64()
	return v, f.end()
}

func decodeU16(b []byte) (uint16, error) {
	f := fields{b: b}
	v := f.u16()
	return v, f.end()
}

// taskNote starts a job.
type taskNote struct {
	Stage  string          `json:"stage"`
	Params json.RawMessage `json:"params,omitempty"`
	Inputs []string        `json:"inputs"`
	Credit int             `json:"credit"` // batches leased at once, per input
}

// failedNote ends a job with an error.
type failedNote struct {
	Message   string `json:"message"`
	Unknown   bool   `json:"unknown_stage,omitempty"`
	Permanent bool   `json:"permanent,omitempty"`
	Written   uint64 `json:"written_bytes"`
	Copied    uint64 `json:"copied_bytes"`
}

func decodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return violation("%v", err)
	}
	return nil
}
