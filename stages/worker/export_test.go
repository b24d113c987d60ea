package worker

// DecodeMessage decodes a packet as each kind of message, for the fuzz test and
// the test vectors of the protocol's specification.
func DecodeMessage(b []byte) (any, error) {
	p, err := decodePacket(b)
	if err != nil {
		return nil, err
	}
	switch p.kind {
	case kindHello, kindReady:
		return decodeHello(p.payload)
	case kindArena:
		return decodeArenaGrant(p.payload)
	case kindBatch:
		return decodeBatchLease(p.payload)
	case kindEnd:
		return decodeU16(p.payload)
	case kindAck, kindPing, kindPong:
		return decodeU64(p.payload)
	case kindRelease:
		return decodeTokens(p.payload)
	case kindOutput:
		return decodeOutputNote(p.payload)
	case kindOpen:
		return decodeOpenNote(p.payload)
	case kindDone:
		return decodeDoneNote(p.payload)
	default:
		var v any
		return v, decodeJSON(p.payload, &v)
	}
}

// Vectors are one message of each kind with a layout, as this package sends it.
func Vectors() (map[string][]byte, error) {
	id := "000102030405060708090a0b0c0d0e0f"
	raw, err := arenaID(id)
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
		kind    kind
		job     uint32
		payload []byte
	}{
		"hello":   {kindHello, 0, hello{10_000}.encode()},
		"ready":   {kindReady, 0, hello{4242}.encode()},
		"arena":   {kindArena, 0, arenaGrant{raw, 1 << 20}.encode()},
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
		if out[name], err = encodePacket(m.kind, m.job, m.payload); err != nil {
			return nil, err
		}
	}
	return out, nil
}
