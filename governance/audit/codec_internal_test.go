package audit

import (
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/stokehold/stokehold/governance"
)

// FuzzDecode: no input panics, and what decodes survives another round.
func FuzzDecode(f *testing.F) {
	ds := []governance.Decision{
		{ID: "00112233445566778899aabbccddeeff", Time: time.Unix(1, 2).UTC(), Point: "publish", Action: "allow", EventID: "a", Type: "t"},
		{ID: "x", Time: time.Unix(1, 2).UTC(), Point: "publish", Action: "allow", EventID: "b", Type: "t", Notes: []governance.Note{{Policy: "p", Mode: "audit"}}},
	}
	f.Add(encodeAll(ds))
	f.Add([]byte(magic))
	f.Add([]byte("STKD\x02"))
	f.Add(append([]byte(magic), 0xff, 0xff, 0xff, 0xff, 0x0f, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []governance.Decision
		err := decodeMessage(b, func(d *governance.Decision) bool { got = append(got, *d); return true })
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		var again []governance.Decision
		if err := decodeMessage(encodeAll(got), func(d *governance.Decision) bool { again = append(again, *d); return true }); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, again) {
			t.Fatalf("\n got %+v\nthen %+v", got, again)
		}
	})
}

func encodeAll(ds []governance.Decision) []byte {
	b := binary.AppendUvarint([]byte(magic), uint64(len(ds)))
	var e encoder
	for i := range ds {
		b = e.append(b, &ds[i])
	}
	return b
}
