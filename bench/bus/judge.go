package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/stokehold/stokehold/events"
)

// newJudge returns the judge that the benchmark runs with. It costs what
// governance costs beside the rules themselves: on publish it stamps each event
// with a policy digest, a decision id and a MAC over its identity and data, on
// receive it verifies that.
func newJudge() *stampJudge {
	return &stampJudge{macs: sync.Pool{New: func() any { return hmac.New(sha256.New, []byte("bench")) }}}
}

type stampJudge struct {
	decisions atomic.Uint64
	refused   atomic.Uint64
	macs      sync.Pool
}

const digest = "3b2c9a6f0d5e4187"

func (j *stampJudge) Judge(_ context.Context, at events.Point, evs []*events.Event) ([]events.Verdict, error) {
	vs := make([]events.Verdict, len(evs))
	h := j.macs.Get().(hash.Hash)
	defer j.macs.Put(h)
	for i, ev := range evs {
		ec := ev.Context.(interface{ GetID() string })
		id := ec.GetID()
		h.Reset()
		h.Write([]byte(id))
		h.Write([]byte(ev.Type()))
		h.Write([]byte(ev.Subject()))
		h.Write(ev.DataEncoded)
		var buf [sha256.Size]byte
		sum := h.Sum(buf[:0])
		vs[i].Action = events.Allow
		n := j.decisions.Add(1)
		if at == events.OnPublish {
			ev.SetExtension("stkpolicy", digest)
			ev.SetExtension("stkdecision", strconv.FormatUint(n, 36))
			ev.SetExtension("stkmac", hex.EncodeToString(sum))
			continue
		}
		x := ev.Extensions()
		mac, _ := x["stkmac"].(string)
		got, err := hex.DecodeString(mac)
		if err != nil || !hmac.Equal(got, sum) || x["stkpolicy"] != digest {
			vs[i] = events.Verdict{Action: events.Deny, Reason: "stamp does not fit"}
			j.refused.Add(1)
		}
	}
	return vs, nil
}
