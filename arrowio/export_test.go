package arrowio

import "encoding/binary"

// DecodersKept is how many streams are remembered.
func DecodersKept(ds *Decoders) int {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return len(ds.of)
}

// RawMessage is one message of a frame for tests that forge: slices of the frame,
// and where in Meta the things are that a forger changes.
type RawMessage struct {
	Raw, Meta, Body                []byte
	Kind                           int64
	NodesAt, BuffersAt, VariadicAt int64
	Nodes, Buffers                 int64
	BodyLengthAt                   int64
}

// Buffer is the part of the body that is buffer i.
func (m RawMessage) Buffer(i int) []byte {
	at := m.BuffersAt + structBytes*int64(i)
	off, n := binary.LittleEndian.Uint64(m.Meta[at:]), binary.LittleEndian.Uint64(m.Meta[at+8:])
	return m.Body[off : off+n]
}

// Messages takes a good stream apart.
func Messages(frame []byte) []RawMessage {
	var out []RawMessage
	for len(frame) > prefixBytes {
		n := prefixBytes + int64(binary.LittleEndian.Uint32(frame[4:]))
		m := RawMessage{Meta: frame[prefixBytes:n]}
		h, err := checkMessage(m.Meta)
		if err != nil && h.kind == 0 {
			panic(err)
		}
		m.Kind, m.NodesAt, m.BuffersAt, m.VariadicAt = h.kind, h.nodesAt, h.buffers, h.viewsAt
		m.Nodes, m.Buffers, m.BodyLengthAt = h.nodes, h.bufferCount, h.bodyPos
		m.Body, m.Raw = frame[n:n+h.bodyBytes], frame[:n+h.bodyBytes]
		frame = frame[n+h.bodyBytes:]
		out = append(out, m)
	}
	return out
}
