package events

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"
)

// overTheWire writes and reads headers as the connection does.
func overTheWire(t testing.TB, h nats.Header) nats.Header {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("NATS/1.0\r\n")
	for k, vs := range h {
		for _, v := range vs {
			b.WriteString(k + ": " + v + "\r\n")
		}
	}
	b.WriteString("\r\n")
	got, err := nats.DecodeHeadersMsg(b.Bytes())
	if err != nil {
		t.Fatalf("headers %q: %v", h, err)
	}
	return got
}

func roundTrip(t testing.TB, ev Event) Event {
	t.Helper()
	msg, err := encodeEvent(&ev, "s")
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeEvent(overTheWire(t, msg.Header), msg.Data)
	if err != nil {
		t.Fatalf("%v\nof %q", err, msg.Header)
	}
	if digestOf(&got) != digestOf(&ev) {
		t.Fatalf("got  %v\nwant %v", got, ev)
	}
	return got
}

func FuzzEventRoundTrip(f *testing.F) {
	f.Add("id", "src/a", "sub", "text/plain", "ext", []byte("{}"), int64(0))
	f.Add(` a"%b `, "https://h:1/p?q=%20#f", "flights/schedule", "application/json; charset=utf-8", "\u00e9\U0001F600", []byte{0, 255}, int64(-62135596800))
	f.Add(`"quoted"`, "urn:x:y", "*.>", `a\b`, "100%", []byte(nil), int64(253402300799))
	f.Fuzz(func(t *testing.T, id, source, subject, contentType, ext string, data []byte, unix int64) {
		ev := event.New(event.CloudEventsVersionV1)
		ev.SetID(id)
		ev.SetType("a.b")
		ev.SetSource(source)
		ev.SetSubject(subject)
		ev.SetDataContentType(contentType)
		ev.SetTime(time.Unix(unix, 123).UTC())
		ev.SetExtension("ext", ext)
		ev.DataEncoded = data
		if normalize(&ev) != nil {
			return
		}
		// What a URL prints is parsed to another now and then; its text is what
		// counts, and that settles after one pass.
		ec, _ := contextOf(&ev)
		text := ec.Source.String()
		if ev.SetSource(text); ec.Source.String() != text || ev.FieldErrors != nil {
			return
		}
		if _, err := encodeEvent(&ev, "s"); err != nil {
			if size := len(id) + len(source) + len(subject) + len(contentType) + len(ext); 6*size < maxEncodedBytes-1000 {
				t.Fatalf("%v of %q", err, id)
			}
			return
		}
		roundTrip(t, ev)
	})
}

// FuzzDecodeEvent feeds what anyone may write to the subjects.
func FuzzDecodeEvent(f *testing.F) {
	f.Add("NATS/1.0\r\nce-specversion: 1.0\r\nce-id: 1\r\nce-source: s\r\nce-type: a.b\r\nce-time: 2001-01-01T00:00:00Z\r\n\r\n", []byte("{}"))
	f.Add("NATS/1.0\r\nce-specversion: 1.0\r\nce-id: \"a\\\"b\"\r\nce-source: %73\r\nce-type: a.b\r\nce-x: %e2%82%ac\r\n\r\n", []byte(nil))
	f.Add("NATS/1.0\r\nCe-Id: 1\r\n\r\n", []byte("x"))
	f.Fuzz(func(t *testing.T, header string, data []byte) {
		h, err := nats.DecodeHeadersMsg([]byte(header))
		if err != nil {
			return
		}
		ev, err := decodeEvent(h, data)
		if err != nil {
			return
		}
		if err := normalize(&ev); err != nil {
			t.Fatalf("decoded what is not valid: %v", err)
		}
		if _, err := encodeEvent(&ev, "s"); err != nil {
			return
		}
		// Written again it says the same.
		ec, _ := contextOf(&ev)
		if ev.SetSource(ec.Source.String()); ev.FieldErrors != nil {
			return
		}
		roundTrip(t, ev)
	})
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "flights/schedule", "a.b", "a_b", "=", "*", ">", " ", "\x00\xff", "ü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok := EncodeToken(s)
		if tok == "" || strings.ContainsAny(tok, ".*> \t\r\n\x00") {
			t.Fatalf("%q is no token", tok)
		}
		if back, err := DecodeToken(tok); err != nil || back != s {
			t.Fatalf("%q -> %q -> %q, %v", s, tok, back, err)
		}
		if text, err := DecodeToken(s); err == nil && EncodeToken(text) != s {
			t.Fatalf("token %q is not what %q encodes to", s, text)
		}
	})
}

// FuzzCheckJSON: what the scanner lets pass, encoding/json decodes strictly and
// to the same.
func FuzzCheckJSON(f *testing.F) {
	for _, s := range []string{
		`{"pipeline":"p","model":"m","version":"1","detector":"ks","statistic":1e3,"threshold":0,"window":"w","rows":-1,"metrics":{"a":1.5},"params":{"x":[null,true,{"y":"\ud83d\ude00"}]}}`,
		`{"metrics":null}`, `{"rows":1.0}`, `{"Rows":1}`, `{"rows":1,"rows":2}`, `{"params":{"a":1,"\u0061":2}}`, `{"params":{"a":1e999}}`, `{} x`, `[]`, `{"x":1}`, `{"window":"\ud800"}`,
	} {
		f.Add([]byte(s))
	}
	sh, err := shapeOf(DriftDetected{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkJSON(data, nil) == nil && !json.Valid(data) {
			t.Fatalf("passed: %q", data)
		}
		if checkJSON(data, sh) != nil {
			return
		}
		var v DriftDetected
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&v); err != nil {
			t.Fatalf("passed %q: %v", data, err)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkJSON(again, sh); err != nil {
			t.Fatalf("%q as written by encoding/json: %v", again, err)
		}
	})
}

func TestEveryStandardTypeTakesItsOwnZeroAndFilledData(t *testing.T) {
	t.Parallel()
	r, err := NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range r.All() {
		raw, err := json.Marshal(typ.Data)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkJSON(raw, r.types[typ.Name].data); err != nil {
			t.Errorf("%s: %s: %v", typ.Name, raw, err)
		}
		if checkJSON([]byte(`{"surprise":1}`), r.types[typ.Name].data) == nil {
			t.Errorf("%s takes an unknown field", typ.Name)
		}
	}
}

func TestNoTwoEventsShareAMessageIDOrASubject(t *testing.T) {
	t.Parallel()
	n := names{"p"}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-z .%"/_=]{0,4}`)
		a, b, c, d := text.Draw(t, "a"), text.Draw(t, "b"), text.Draw(t, "c"), text.Draw(t, "d")
		same := a == c && b == d
		if (messageID(escapeAttr(a), escapeAttr(b)) == messageID(escapeAttr(c), escapeAttr(d))) != same {
			t.Fatalf("message ids of %q %q and %q %q", a, b, c, d)
		}
		word := rapid.StringMatching(`[a-c](\.[a-c]){0,3}`)
		t1, t2 := word.Draw(t, "t1"), word.Draw(t, "t2")
		if (n.event(t1, b) == n.event(t2, d)) != (t1 == t2 && b == d) {
			t.Fatalf("subjects of %q %q and %q %q", t1, b, t2, d)
		}
		if !n.matches(n.event(t1, b), t1, &b) {
			t.Fatalf("subject of %q %q does not match itself", t1, b)
		}
	})
}

func TestHeadersAreLowerCaseAndPercentEncoded(t *testing.T) {
	t.Parallel()
	ev, err := New("run.started", "a b", "r", `x"%é`, time.Date(2001, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)), RunStarted{})
	if err != nil {
		t.Fatal(err)
	}
	if err := normalize(&ev); err != nil {
		t.Fatal(err)
	}
	msg, err := encodeEvent(&ev, "s")
	if err != nil {
		t.Fatal(err)
	}
	want := nats.Header{
		"Nats-Msg-Id": {"a%2520b x%22%25%C3%A9"}, "ce-specversion": {"1.0"}, "ce-id": {"x%22%25%C3%A9"}, "ce-source": {"a%2520b"},
		"ce-type": {"run.started"}, "ce-subject": {"r"}, "ce-time": {"2000-12-31T23:00:00Z"}, "content-type": {"application/json"},
	}
	if !maps.EqualFunc(msg.Header, want, func(a, b []string) bool { return len(a) == 1 && len(b) == 1 && a[0] == b[0] }) {
		t.Errorf("got  %q\nwant %q", msg.Header, want)
	}
}

// AllocsPerRun counts for the whole process, so these tests run alone.
func TestAllocations(t *testing.T) {
	ev, err := New("dataset.sealed", "stokehold/test", "flights/schedule", "id-1", time.Unix(1, 0), DatasetSealed{Dataset: "flights/schedule"})
	if err != nil {
		t.Fatal(err)
	}
	if err := normalize(&ev); err != nil {
		t.Fatal(err)
	}
	msg, err := encodeEvent(&ev, "s")
	if err != nil {
		t.Fatal(err)
	}
	sh, err := shapeOf(DatasetSealed{})
	if err != nil {
		t.Fatal(err)
	}
	var dec decoder
	var again envelope
	ec, err := contextOf(&ev)
	if err != nil {
		t.Fatal(err)
	}
	ack := []byte(`{"stream":"STOKEHOLD_EVENTS", "seq":17}`)
	for name, c := range map[string]struct {
		most float64
		f    func()
	}{
		"decode":   {1, func() { _, _ = dec.decode(msg.Header, msg.Data, &decoded{}) }},
		"encode":   {2, func() { _ = again.encode(ec, "stokehold/test", ev.DataEncoded, "s") }},
		"data":     {0, func() { _ = checkJSON(ev.DataEncoded, sh) }},
		"position": {0, func() { _, _ = parsePosition("$JS.ACK.S.C.1.22.333.4444.5") }},
		"puback":   {0, func() { _ = pubAckError(ack) }},
	} {
		if n := testing.AllocsPerRun(200, c.f); n > c.most {
			t.Errorf("%s: %.0f allocations, the limit is %.0f", name, n, c.most)
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	ev, err := New("dataset.sealed", "stokehold/test", "flights/schedule", "id-1", time.Unix(1, 0), DatasetSealed{Dataset: "flights/schedule"})
	if err != nil {
		b.Fatal(err)
	}
	for _, x := range []string{"stkstamp", "stkpipeline", "stkstage", "stkrun"} {
		ev.SetExtension(x, "0123456789abcdef0123456789abcdef")
	}
	if err := normalize(&ev); err != nil {
		b.Fatal(err)
	}
	msg, err := encodeEvent(&ev, "s")
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		ec, err := contextOf(&ev)
		if err != nil {
			b.Fatal(err)
		}
		var e envelope
		for b.Loop() {
			e.clear()
			if err := e.encode(ec, "stokehold/test", ev.DataEncoded, "s"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("decode", func(b *testing.B) {
		var dec decoder
		b.ReportAllocs()
		for b.Loop() {
			if _, err := dec.decode(msg.Header, msg.Data, &decoded{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("data", func(b *testing.B) {
		sh, err := shapeOf(DatasetSealed{})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		b.SetBytes(int64(len(ev.DataEncoded)))
		for b.Loop() {
			if err := checkJSON(ev.DataEncoded, sh); err != nil {
				b.Fatal(err)
			}
		}
	})
}
