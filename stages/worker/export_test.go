package worker

import "github.com/stokehold/stokehold/arrowio/shm/handoff"

// DecodeMessage decodes a packet as each kind of message, for the fuzz test and
// the test vectors of the protocol's specification.
func DecodeMessage(b []byte) (any, error) {
	p, err := handoff.Decode(b)
	if err != nil {
		return nil, err
	}
	switch p.Kind {
	case kindHello, kindReady:
		return decodeHello(p.Payload)
	case kindArena:
		return handoff.DecodeArenaGrant(p.Payload)
	case kindBatch:
		return decodeBatchLease(p.Payload)
	case kindEnd:
		return decodeU16(p.Payload)
	case kindAck, kindPing, kindPong:
		return decodeU64(p.Payload)
	case kindRelease:
		return decodeTokens(p.Payload)
	case kindOutput:
		return decodeOutputNote(p.Payload)
	case kindOpen:
		return decodeOpenNote(p.Payload)
	case kindDone:
		return decodeDoneNote(p.Payload)
	default:
		var v any
		return v, decodeJSON(p.Payload, &v)
	}
}

// Vectors are one message of each kind with a layout, as this package sends it.
func Vectors() (map[string][]byte, error) {
	id := "000102030405060708090a0b0c0d0e0f"
	raw, err := handoff.ArenaID(id)
	if err != nil {
		return nil, err
	}
	lease := batchLease{input: 1, sequence: 7, token: 0x1122334455667788}
	lease.handle.Arena, lease.handle.Offset, lease.handle.Length, lease.handle.Generation = id, 4096, 1000, 3
	leased, err := lease.encode()
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for name, m := range map[string]struct {
		kind    handoff.Kind
		job     uint32
		payload []byte
	}{
		"hello":   {kindHello, 0, hello{10_000}.encode()},
		"ready":   {kindReady, 0, hello{4242}.encode()},
		"arena":   {kindArena, 0, handoff.ArenaGrant{ID: raw, Size: 1 << 20}.Encode()},
		"forget":  {kindForget, 0, raw[:]},
		"batch":   {kindBatch, 5, leased},
		"end":     {kindEnd, 5, []byte{1, 0}},
		"ack":     {kindAck, 5, encodeU64(7)},
		"ping":    {kindPing, 0, encodeU64(1)},
		"release": {kindRelease, 5, encodeTokens([]uint64{0x1122334455667788})},
		"output":  {kindOutput, 5, outputNote{7, 4096, 1000}.encode()},
		"open":    {kindOpen, 5, openNote{1, 3, 9}.encode()},
		"done":    {kindDone, 5, doneNote{64, 0}.encode()},
	} {
		if out[name], err = handoff.Append(nil, m.kind, m.job, m.payload); err != nil {
			return nil, err
		}
	}
	return out, nil
}
