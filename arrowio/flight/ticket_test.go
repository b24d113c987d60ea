package flight_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/arrowio/flight"
)

var (
	hex32 = strings.Repeat("0f", 16)
	hex64 = strings.Repeat("0f", 32)
)

func TestTickets(t *testing.T) {
	for _, good := range []flight.Ticket{
		{Dataset: "d", From: 0, To: 1}, {Dataset: "flights/\"x\" é", From: 7, To: ^uint64(0), Fingerprint: hex32},
	} {
		if got, err := flight.DecodeTicket(good.Encode()); err != nil || got != good {
			t.Errorf("%+v: %+v, %v", good, got, err)
		}
	}
	if got, err := flight.DecodeTicket([]byte(" {\"to\": 3,\n\"dataset\": \"d\", \"from\": 0} ")); err != nil || got.To != 3 {
		t.Error("as another program would write it:", got, err)
	}
	for _, bad := range []string{
		"", "null", "[]", "1", "{", "{}", `{"dataset":"d"}`, `{"dataset":"d","from":0}`, `{"dataset":"","from":0,"to":1}`,
		`{"dataset":"d","from":0,"to":0}`, `{"dataset":"d","from":2,"to":1}`, `{"dataset":"d","from":-1,"to":1}`,
		`{"dataset":"d","from":0.5,"to":1}`, `{"dataset":"d","from":0,"to":18446744073709551616}`, `{"dataset":"d","from":"0","to":1}`,
		`{"dataset":"d","from":0,"to":1,"to":2}`, `{"dataset":"d","from":0,"to":1,"x":1}`, `{"Dataset":"d","from":0,"to":1}`,
		`{"dataset":"d","from":0,"to":1}{}`, `{"dataset":"d","from":0,"to":1} x`, `{"dataset":["d"],"from":0,"to":1}`,
		`{"dataset":"d","from":0,"to":1,"fingerprint":"x"}`, `{"dataset":"` + "\xff" + `","from":0,"to":1}`,
		`{"dataset":"` + strings.Repeat("d", 1025) + `","from":0,"to":1}`, `{"dataset":"d","from":0,"to":1` + strings.Repeat(" ", 4096) + `}`,
		strings.Repeat("{\"a\":", 500),
	} {
		if got, err := flight.DecodeTicket([]byte(bad)); !errors.Is(err, flight.ErrTicket) {
			t.Errorf("%.60q: %+v, %v", bad, got, err)
		}
	}
}

func TestMetas(t *testing.T) {
	for _, good := range []flight.Meta{
		{SHA256: hex64, FrameBytes: 1}, {Sequence: ^uint64(0), SHA256: hex64, Rows: 3, BodyBytes: 64, FrameBytes: 640, Schema: []byte{0, 1}},
	} {
		got, err := flight.DecodeMeta(good.Encode())
		if err != nil || string(got.Encode()) != string(good.Encode()) {
			t.Errorf("%+v: %+v, %v", good, got, err)
		}
	}
	ok := flight.Meta{SHA256: hex64, Rows: 1, BodyBytes: 2, FrameBytes: 3}
	for name, f := range map[string]func(*flight.Meta){
		"no checksum": func(m *flight.Meta) { m.SHA256 = "" }, "upper case": func(m *flight.Meta) { m.SHA256 = strings.ToUpper(hex64) },
		"rows": func(m *flight.Meta) { m.Rows = -1 }, "body": func(m *flight.Meta) { m.BodyBytes = -1 },
		"body over frame": func(m *flight.Meta) { m.BodyBytes = 4 }, "empty frame": func(m *flight.Meta) { m.BodyBytes, m.FrameBytes = 0, 0 },
		"schema": func(m *flight.Meta) { m.Schema = make([]byte, 1<<20+1) },
	} {
		m := ok
		f(&m)
		if got, err := flight.DecodeMeta(m.Encode()); !errors.Is(err, flight.ErrMeta) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "{}", `{"sequence":0}`, strings.Replace(string(ok.Encode()), "rows", "sequence", 1)} {
		if _, err := flight.DecodeMeta([]byte(bad)); !errors.Is(err, flight.ErrMeta) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzDecodeTicket(f *testing.F) {
	f.Add(flight.Ticket{Dataset: "d", To: 1, Fingerprint: hex32}.Encode())
	f.Add([]byte(`{"dataset":"d","from":0,"to":1,"to":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := flight.DecodeTicket(b)
		if err != nil {
			if !errors.Is(err, flight.ErrTicket) {
				t.Fatal(err)
			}
			return
		}
		if again, err := flight.DecodeTicket(got.Encode()); err != nil || again != got {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}

func FuzzDecodeMeta(f *testing.F) {
	f.Add(flight.Meta{SHA256: hex64, Rows: 1, BodyBytes: 2, FrameBytes: 3, Schema: []byte{1}}.Encode())
	f.Add([]byte(`{"sequence":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := flight.DecodeMeta(b)
		if err != nil {
			if !errors.Is(err, flight.ErrMeta) {
				t.Fatal(err)
			}
			return
		}
		if again, err := flight.DecodeMeta(got.Encode()); err != nil || string(again.Encode()) != string(got.Encode()) {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}

func FuzzFlightData(f *testing.F) {
	f.Add(flight.Wire([]byte("head"), []byte("meta"), []byte("body")), uint8(3))
	f.Add(flight.Wire(nil, nil, nil), uint8(1))
	f.Add([]byte{0x0a, 0x01, 'x', 0x12, 0x00}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		header, meta, body, err := flight.ParseWire(b, int(piece))
		if err != nil {
			return
		}
		whole, metaWhole, bodyWhole, err := flight.ParseWire(b, 0)
		if err != nil || string(whole) != string(header) || string(metaWhole) != string(meta) || string(bodyWhole) != string(body) {
			t.Fatal("it depends on how the message is cut", err)
		}
		h, m, bd, err := flight.ParseWire(flight.Wire(header, meta, body), int(piece))
		if err != nil || string(h) != string(header) || string(m) != string(meta) || string(bd) != string(body) {
			t.Fatal("not what was written", err)
		}
	})
}

func TestWireIsWhatProtobufSays(t *testing.T) {
	for _, c := range []struct{ header, meta, body string }{{"h", "m", "b"}, {"h", "", ""}, {"", "m", ""}, {strings.Repeat("h", 200), "m", strings.Repeat("b", 70_000)}} {
		wire := flight.Wire([]byte(c.header), []byte(c.meta), []byte(c.body))
		for _, cut := range []int{0, 1, 7} {
			h, m, b, err := flight.ParseWire(flight.ProtoWire([]byte(c.header), []byte(c.meta), []byte(c.body)), cut)
			if err != nil || string(h) != c.header || string(m) != c.meta || string(b) != c.body {
				t.Errorf("reading %.10q: %v", c.header, err)
			}
		}
		h, m, b, err := flight.ProtoParse(wire)
		if err != nil || string(h) != c.header || string(m) != c.meta || string(b) != c.body {
			t.Errorf("writing %.10q: %v", c.header, err)
		}
	}
	wire := flight.Wire([]byte("head"), []byte("meta"), []byte("body"))
	for n := range wire { // truncated anywhere, but at the end of a field
		if _, _, _, err := flight.ParseWire(wire[:n], 2); (err == nil) != (n == 0 || n == 6 || n == 12) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
