package worker

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// The numbers here are docs/WORKER-PROTOCOL.md; change both or neither.
const (
	protocolVersion = 2
	magic           = 0x574B5453 // "STKW" in memory
	maxPayload      = handoff.MaxPacket - handoff.HeaderBytes
	maxTokens       = 1024     // in one release or returned
	maxText         = 8 << 10  // of an error or log message: JSON may need six bytes for one
	maxTraceback    = 16 << 10 // as maxText: the JSON is cut further where it does not fit
	maxReason       = 1024     // of cancel and error
	outputWindow    = 4        // outputs not yet acknowledged
	maxGrants       = 8        // arenas of the child's
	maxSlots        = 65_536   // of them, published and not returned
	socketFD        = 3
	childEnv        = "STOKEHOLD_WORKER"
)

const (
	// host to child
	kindHello    handoff.Kind = 1
	kindArena    handoff.Kind = 2
	kindForget   handoff.Kind = 3
	kindTask     handoff.Kind = 4
	kindBatch    handoff.Kind = 5
	kindEnd      handoff.Kind = 6
	kindAck      handoff.Kind = 7
	kindCancel   handoff.Kind = 8
	kindPing     handoff.Kind = 9
	kindGoodbye  handoff.Kind = 10
	kindReturned handoff.Kind = 11
	kindSaved    handoff.Kind = 12
	kindRefused  handoff.Kind = 13 // "error" in the specification
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
	kindGrant    handoff.Kind = 42
	kindPublish  handoff.Kind = 43
	kindModel    handoff.Kind = 44
	kindGaveUp   handoff.Kind = 45 // "error" in the specification
)

// flagShared in hello: shared outputs are allowed.
const flagShared = 1

// ErrProtocol means: the peer sent something that the protocol does not allow. The
// connection is over.
var ErrProtocol = handoff.ErrProtocol

// carries is how many descriptors come with a message.
func carries(k handoff.Kind) int {
	switch k {
	case kindOutput, kindArena, kindGrant, kindModel:
		return 1
	}
	return 0
}

// jobless reports whether a kind of message belongs to the connection rather than
// to a job.
func jobless(k handoff.Kind) bool {
	switch k {
	case kindHello, kindArena, kindForget, kindPing, kindGoodbye, kindReturned, kindRefused, kindReady, kindPong, kindGrant, kindGaveUp:
		return true
	}
	return false
}

// checkJob holds a message that belongs to no job to job number 0.
func checkJob(pkt handoff.Packet) error {
	if jobless(pkt.Kind) && pkt.Job != 0 {
		pkt.CloseFDs()
		return handoff.Violation("message of kind %d for job %d: it belongs to none", pkt.Kind, pkt.Job)
	}
	return nil
}

// hello is what the child is told of the connection.
type hello struct {
	heartbeatMillis uint32
	flags           uint32
	arenaBytes      uint64 // of all arenas that the child grants
	modelBytes      uint64 // of a model
}

func (m hello) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint32(b, protocolVersion)
	b = binary.LittleEndian.AppendUint32(b, m.heartbeatMillis)
	b = binary.LittleEndian.AppendUint32(b, m.flags)
	b = binary.LittleEndian.AppendUint64(b, m.arenaBytes)
	return binary.LittleEndian.AppendUint64(b, m.modelBytes)
}

func readPreamble(f *handoff.Fields) {
	if f.U32() != magic {
		f.Fail("not a Stokehold worker socket")
	}
	if v := f.U32(); v != protocolVersion {
		f.Fail("version %d, this side speaks %d", v, protocolVersion)
	}
}

func decodeHello(b []byte) (hello, error) {
	f := handoff.Read(b)
	readPreamble(&f)
	m := hello{f.U32(), f.U32(), uint64(f.Size()), uint64(f.Size())}
	return m, f.End()
}

// readyNote answers hello; pid is the process id as the child sees it.
type readyNote struct{ pid uint32 }

func (m readyNote) encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint32(b, protocolVersion)
	return binary.LittleEndian.AppendUint32(b, m.pid)
}

func decodeReady(b []byte) (readyNote, error) {
	f := handoff.Read(b)
	readPreamble(&f)
	m := readyNote{f.U32()}
	return m, f.End()
}

type batchLease struct {
	input    uint16
	sequence uint64
	token    uint64
	handle   shm.Handle
}

// batchBytes is the payload of a batch message.
const batchBytes = 64

// append encodes the message after b, which has room for batchBytes.
func (m batchLease) append(b []byte) ([]byte, error) {
	id, err := handoff.ArenaID(m.handle.Arena)
	if err != nil {
		return nil, err
	}
	b = binary.LittleEndian.AppendUint16(b, m.input)
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

// appendTokens encodes release and returned after b.
func appendTokens(b []byte, tokens []uint64) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(tokens)))
	b = append(b, 0, 0, 0, 0)
	for _, t := range tokens {
		b = binary.LittleEndian.AppendUint64(b, t)
	}
	return b
}

// decodeTokens appends the tokens of release and returned to tokens.
func decodeTokens(tokens []uint64, b []byte) ([]uint64, error) {
	f := handoff.Read(b)
	n := f.U32()
	f.Next(4)
	if n == 0 || n > maxTokens {
		return tokens, handoff.Violation("%d tokens: 1 to %d", n, maxTokens)
	}
	for range n {
		tokens = append(tokens, f.U64())
	}
	return tokens, f.End()
}

// publishNote is an output that lies in an arena of the child's.
type publishNote struct {
	sequence uint64
	token    uint64
	handle   shm.Handle
}

func (m publishNote) encode() ([]byte, error) {
	id, err := handoff.ArenaID(m.handle.Arena)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, 56), m.sequence)
	b = binary.LittleEndian.AppendUint64(b, m.token)
	b = append(b, id[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.handle.Offset))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.handle.Length))
	return binary.LittleEndian.AppendUint64(b, m.handle.Generation), nil
}

func decodePublishNote(b []byte) (publishNote, error) {
	f := handoff.Read(b)
	m := publishNote{sequence: f.U64(), token: f.U64()}
	m.handle.Arena = hex.EncodeToString(f.Next(16))
	m.handle.Offset, m.handle.Length, m.handle.Generation = f.Size(), f.Size(), f.U64()
	return m, f.End()
}

// modelNote is a model in a sealed memfd.
type modelNote struct {
	size, length int64
	draft        ModelDraft
}

func (m modelNote) encode() ([]byte, error) {
	draft, err := json.Marshal(m.draft)
	if err != nil {
		return nil, err
	}
	b := binary.LittleEndian.AppendUint64(nil, uint64(m.size))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.length))
	return append(b, draft...), nil
}

func decodeModelNote(b []byte) (modelNote, error) {
	f := handoff.Read(b[:min(len(b), 16)])
	m := modelNote{size: f.Size(), length: f.Size()}
	if err := f.End(); err != nil {
		return m, err
	}
	return m, decodeJSON(b[16:], &m.draft)
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
	Stage    string          `json:"stage"`
	Params   json.RawMessage `json:"params,omitempty"`
	Inputs   []string        `json:"inputs"`
	Credit   int             `json:"credit"` // batches leased at once, per input
	Outputs  OutputMode      `json:"outputs,omitempty"`
	Deadline *int64          `json:"deadline_ms,omitempty"` // from now
}

// failedNote ends a job with an error.
type failedNote struct {
	Message   string `json:"message"`
	Traceback string `json:"traceback,omitempty"`
	Unknown   bool   `json:"unknown_stage,omitempty"`
	Permanent bool   `json:"permanent,omitempty"`
	Written   uint64 `json:"written_bytes"`
	Copied    uint64 `json:"copied_bytes"`
}

// encode cuts what does not fit: the message keeps its beginning, the traceback
// its end, where the fault is.
func (m failedNote) encode() ([]byte, error) {
	m.Message = clipped(m.Message, maxText)
	for most := maxTraceback; ; most /= 2 {
		m.Traceback = tailOf(m.Traceback, most)
		b, err := json.Marshal(m)
		if err != nil || len(b) <= maxPayload || most == 0 {
			return b, err
		}
	}
}

// clipped is the beginning of s, in at most most bytes of whole characters.
func clipped(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most]
}

// tailOf is the end of s, in at most most bytes of whole characters.
func tailOf(s string, most int) string {
	if len(s) <= most {
		return s
	}
	s = s[len(s)-most:]
	for len(s) > 0 && !utf8.RuneStart(s[0]) {
		s = s[1:]
	}
	return s
}

// lastWords says why a connection ends, if the peer reads: it may be gone, or have
// stopped.
func lastWords(c *handoff.Conn, kind handoff.Kind, why error) {
	t := time.NewTicker(lastWait / lastTries)
	defer t.Stop()
	for range lastTries {
		sent, err := c.TrySend(kind, 0, []byte(clipped(why.Error(), maxReason)))
		if sent || err != nil {
			return
		}
		<-t.C
	}
}

const (
	lastWait  = 20 * time.Millisecond // long enough for a peer that reads
	lastTries = 20
)

// decodeReason reads the text of cancel and error.
func decodeReason(b []byte) (string, error) {
	if len(b) > maxReason {
		return "", handoff.Violation("reason of %d bytes: at most %d", len(b), maxReason)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), nil
}

func decodeJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return handoff.Violation("%v", err)
	}
	return nil
}
