package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit/proof"
)

// FuzzDecode: no input panics, and what decodes survives another round, but for what
// is taken out when it is written: then the round after it.
func FuzzDecode(f *testing.F) {
	ds := []governance.Decision{
		{ID: "00112233445566778899aabbccddeeff", Time: time.Unix(1, 2).UTC(), Point: "publish", Action: "allow", EventID: "a", Type: "t"},
		{ID: "x", Time: time.Unix(1, 2).UTC(), Point: "publish", Action: "allow", EventID: "b", Type: "t", Notes: []governance.Note{{Policy: "p", Mode: "audit"}}},
	}
	f.Add(encodeAll(ds))
	f.Add([]byte(magic))
	f.Add([]byte(magicFirst))
	f.Add([]byte("STKD\x03"))
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
		var third []governance.Decision
		if err := decodeMessage(encodeAll(again), func(d *governance.Decision) bool { third = append(third, *d); return true }); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again, third) || len(again) != len(got) {
			t.Fatalf("\n got %+v\nthen %+v\nthen %+v", got, again, third)
		}
		clean := true
		for i := range got {
			clean = clean && untouched(&got[i])
		}
		if clean && !reflect.DeepEqual(got, again) {
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

// untouched reports whether writing a decision takes nothing out of it.
func untouched(d *governance.Decision) bool {
	for i, s := range fields(d) {
		if i == reasonField && scrub(s) != s || scrubURL(s) != s {
			return false
		}
	}
	for _, n := range d.Notes {
		if scrubURL(n.Policy+n.Rule+string(n.Mode)) != n.Policy+n.Rule+string(n.Mode) || scrub(n.Reason) != n.Reason {
			return false
		}
	}
	return scrubURL(d.ID) == d.ID
}

// TestEveryFieldIsLogged fails when governance.Decision gets a field that the log
// does not keep: it belongs into the codec, the leaf and the entry.
func TestEveryFieldIsLogged(t *testing.T) {
	var d governance.Decision
	v := reflect.ValueOf(&d).Elem()
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		switch f := v.Field(i); {
		case f.Kind() == reflect.String:
			f.SetString("value of " + name)
		case f.Type() == reflect.TypeFor[time.Time]():
			f.Set(reflect.ValueOf(time.Unix(1_700_000_000, 5).UTC()))
		case f.Type() == reflect.TypeFor[[]governance.Note]():
			f.Set(reflect.ValueOf([]governance.Note{{Policy: "p", Rule: "r", Reason: "why", Mode: "audit"}}))
		default:
			t.Errorf("field %s has a kind that this test does not know", name)
		}
	}
	var back []governance.Decision
	if err := decodeMessage(encodeAll([]governance.Decision{d}), func(d *governance.Decision) bool { back = append(back, *d); return true }); err != nil {
		t.Fatal(err)
	}
	if len(back) != 1 || !reflect.DeepEqual(back[0], d) {
		t.Errorf("the codec loses a field:\n got %+v\nwant %+v", back, d)
	}
	e := entryOf(&d)
	leaf := proof.AppendLeaf(nil, &e)
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String && !bytes.Contains(leaf, []byte(f.String())) {
			t.Errorf("the leaf lacks %s", v.Type().Field(i).Name)
		}
	}
}
