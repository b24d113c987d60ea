package worker

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// The numbers here are docs/WORKER-PROTOCOL.md; change both or neither.
const (
	protocolVersion = 1
	magic           = 0x574B5453 // "STKW" in memory
	maxPayload      = handoff.MaxPacket - handoff.HeaderBytes
	maxReleases     = 1024    // tokens in one release
	maxText         = 8 << 10 // of an error or log message: JSON may need six bytes for one
	outputWindow    = 4       // outputs not yet acknowledged
	socketFD        = 3
	childEnv        = "STOKEHOLD_WORKER"
)

const (
	// host to child
	kindHello   handoff.Kind = 1
	kindArena   handoff.Kind = 2
	kindForget  handoff.Kind = 3
	kindTask    handoff.Kind = 4
	kindBatch   handoff.Kind = 5
	kindEnd     handoff.Kind = 6
	kindAck     handoff.Kind = 7
	kindCancel  handoff.Kind = 8
	kindPing    handoff.Kind = 9
	kindGoodbye handoff.Kind = 10
	// child to host
	kindReady    handoff.Kind = 32
	kindRelease  handoff.Kind = 33
	kindOutput   handoff.Kind = 34
	kindProgress handoff.Kind = 35
	kindLog      handoff.Kind = 36
	kindMetrics  handoff.Kind = 37
	kindDone     handoff.Kind = 38
	kindFailed   handoff.Kind = 39
	kindPong     handoff.Kind = 40
	kindOpen     handoff.Kind = 41
)

// ErrProtocol means: the peer sent something that the protocol does not allow. The
// connection is over.
var ErrProtocol = handoff.ErrProtocol

// carries is how many descriptors come with a message.
func carries(k handoff.Kind) int {
	if k == kindOutput || k == kindArena {
		return 1
	}
	return 0
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
	f := handoff.Read(b)
	if f.U32() != magic {
		f.Fail("not a Stokehold worker socket")
	}
	if v := f.U32(); v != protocolVersion {
		f.Fail("version %d, this side speaks %d", v, protocolVersion)
	}
	m := hello{f.U32()}
	return m, f.End()
}

type batchLease struct {
	input    uint16
	sequence uint64
	token    uint64
	handle   shm.Handle
}

func (m batchLease) encode() ([]byte, error) {
	id, err := handoff.ArenaID(m.handle.Arena)
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
	f := handoff.Read(b)
	m := batchLease{input: f.U16()}
	f.Next(6)
	m.sequence, m.token = f.U64(), f.U64()
	m.handle.Arena = hex.EncodeToString(f.Next(16))
	m.handle.Offset, m.handle.Length, m.handle.Generation = f.Size(), f.Size(), f.U64()
	return m, f.End()
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
	f := handoff.Read(b)
	m := openNote{input: f.U16()}
	f.Next(6)
	m.from, m.to = f.U64(), f.U64()
	return m, f.End()
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
	f := handoff.Read(b)
	n := f.U32()
	f.Next(4)
	if n == 0 || n > maxReleases {
		return nil, handoff.Violation("release of %d leases: 1 to %d", n, maxReleases)
	}
	tokens := make([]uint64, 0, n)
	for range n {
		tokens = append(tokens, f.U64())
	}
	return tokens, f.End()
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
	f := handoff.Read(b)
	m := outputNote{f.U64(), f.Size(), f.Size()}
	return m, f.End()
}

// doneNote ends a job well: body bytes that the child wrote into segments, and
// body bytes that it had to copy out of leased memory (0, it counts).
type doneNote struct{ written, copied uint64 }

func (m doneNote) encode() []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, m.written), m.copied)
}

func decodeDoneNote(b []byte) (doneNote, error) {
	f := handoff.Read(b)
	m := doneNote{f.U64(), f.U64()}
	return m, f.End()
}

func encodeU64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func decodeU64(b []byte) (uint64, error) {
	f := handoff.Read(b)
	v := f.U64()
	return v, f.End()
}

func decodeU16(b []byte) (uint16, error) {
	f := handoff.Read(b)
	v := f.U16()
	return v, f.End()
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
		return handoff.Violation("%v", err)
	}
	return nil
}
