package worker

import (
	"context"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// DecodeMessage decodes a packet as each kind of message, for the fuzz test and
// the test vectors of the protocol's specification.
func DecodeMessage(b []byte) (any, error) {
	p, err := handoff.Decode(b)
	if err != nil {
		return nil, err
	}
	switch p.Kind {
	case kindHello:
		return decodeHello(p.Payload)
	case kindReady:
		return decodeReady(p.Payload)
	case kindPublish:
		return decodePublishNote(p.Payload)
	case kindModel:
		return decodeModelNote(p.Payload)
	case kindCancel, kindRefused, kindGaveUp:
		return decodeReason(p.Payload)
	case kindTask:
		var v taskNote
		return v, decodeJSON(p.Payload, &v)
	case kindFailed:
		var v failedNote
		return v, decodeJSON(p.Payload, &v)
	case kindProgress:
		var v Progress
		return v, decodeJSON(p.Payload, &v)
	case kindLog:
		var v Log
		return v, decodeJSON(p.Payload, &v)
	case kindSaved:
		var v SavedModel
		return v, decodeJSON(p.Payload, &v)
	case kindArena, kindGrant:
		return handoff.DecodeArenaGrant(p.Payload)
	case kindBatch:
		return decodeBatchLease(p.Payload)
	case kindEnd:
		return decodeU16(p.Payload)
	case kindAck, kindPing, kindPong:
		return decodeU64(p.Payload)
	case kindRelease, kindReturned:
		return decodeTokens(nil, p.Payload)
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
	leased, err := lease.append(nil)
	if err != nil {
		return nil, err
	}
	published, err := publishNote{sequence: 7, token: lease.token, handle: lease.handle}.encode()
	if err != nil {
		return nil, err
	}
	model, err := modelNote{size: 4096, length: 1000, draft: ModelDraft{Format: "safetensors"}}.encode()
	if err != nil {
		return nil, err
	}
	token := appendTokens(nil, []uint64{lease.token})
	out := map[string][]byte{}
	for name, m := range map[string]struct {
		kind    handoff.Kind
		job     uint32
		payload []byte
	}{
		"hello":    {kindHello, 0, hello{10_000, flagShared, 1 << 28, 1 << 30}.encode()},
		"ready":    {kindReady, 0, readyNote{4242}.encode()},
		"arena":    {kindArena, 0, handoff.ArenaGrant{ID: raw, Size: 1 << 20}.Encode()},
		"forget":   {kindForget, 0, raw[:]},
		"batch":    {kindBatch, 5, leased},
		"end":      {kindEnd, 5, []byte{1, 0}},
		"ack":      {kindAck, 5, encodeU64(7)},
		"ping":     {kindPing, 0, encodeU64(1)},
		"release":  {kindRelease, 5, token},
		"output":   {kindOutput, 5, outputNote{7, 4096, 1000}.encode()},
		"open":     {kindOpen, 5, openNote{1, 3, 9}.encode()},
		"returned": {kindReturned, 0, token},
		"error":    {kindRefused, 0, []byte("late")},
		"grant":    {kindGrant, 0, handoff.ArenaGrant{ID: raw, Size: 1 << 20}.Encode()},
		"publish":  {kindPublish, 5, published},
		"model":    {kindModel, 5, model},
		"done":     {kindDone, 5, doneNote{64, 0}.encode()},
	} {
		if out[name], err = handoff.Append(nil, m.kind, m.job, m.payload); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Patience is the context in which a child takes memory for an output.
func Patience(ctx context.Context) (brief context.Context, end func()) {
	p := &patience{Context: ctx}
	return p, p.end
}
