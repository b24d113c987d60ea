package arrowio_test

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// features is what goes to an accelerator: 16 columns of numbers and a label.
func features(tb testing.TB, bytes int) []byte {
	tb.Helper()
	rows := bytes / (16*4 + 8)
	var fields []arrow.Field
	var cols []arrow.Array
	for i := range 16 {
		fields = append(fields, arrow.Field{Name: fmt.Sprint("f", i), Type: arrow.PrimitiveTypes.Float32})
		d := array.NewData(arrow.PrimitiveTypes.Float32, rows, []*memory.Buffer{nil, little(make([]float32, rows)...)}, nil, 0, 0)
		cols = append(cols, array.MakeFromData(d))
	}
	fields = append(fields, arrow.Field{Name: "label", Type: arrow.PrimitiveTypes.Int64, Nullable: true})
	cols = append(cols, array.MakeFromData(ints(make([]int64, rows)...)))
	return encode(tb, array.NewRecordBatch(arrow.NewSchema(fields, nil), cols, int64(rows)))
}

// BenchmarkDecode compares trusted with validated, and a Decoder that has seen
// the schema with the function, for numbers and for a column of each type.
func BenchmarkDecode(b *testing.B) {
	frames := []struct {
		name  string
		frame []byte
	}{
		{"numbers/1MiB", features(b, 1<<20)}, {"numbers/16MiB", features(b, 16<<20)},
		{"all types/1MiB", encode(b, wide(b, 8_000))}, {"all types/16MiB", encode(b, wide(b, 128_000))},
	}
	for _, f := range frames {
		for _, mode := range []string{"trusted", "validated", "trusted, schema known"} {
			b.Run(f.name+"/"+mode, func(b *testing.B) {
				var opts []arrowio.DecodeOption
				if mode != "validated" {
					opts = append(opts, arrowio.Trusted())
				}
				var d arrowio.Decoder
				decode := arrowio.Decode
				if mode == "trusted, schema known" {
					decode = d.Decode
				}
				b.SetBytes(int64(len(f.frame)))
				b.ReportAllocs()
				for b.Loop() {
					rec, err := decode(f.frame, nil, opts...)
					if err != nil {
						b.Fatal(err)
					}
					rec.Release()
				}
			})
		}
	}
}

// TestDecodeAllocations holds what a batch costs the Go heap: nothing per row,
// and of a known schema per column what its arrays and buffers are made of.
func TestDecodeAllocations(t *testing.T) {
	frame, twice := features(t, 64<<10), features(t, 128<<10)
	var d arrowio.Decoder
	allocs := func(frame []byte) float64 {
		return testing.AllocsPerRun(50, func() {
			rec, err := d.Decode(frame, nil)
			if err != nil {
				t.Fatal(err)
			}
			rec.Release()
		})
	}
	n := allocs(frame)
	if more := allocs(twice); more != n {
		t.Errorf("%v allocations for twice the rows, %v before", more, n)
	}
	const columns, perColumn, perBatch = 17, 5, 12
	if limit := float64(columns*perColumn + perBatch); n > limit {
		t.Errorf("%v allocations for %d columns, want at most %v", n, columns, limit)
	}
	t.Logf("%v allocations", n)
}

func TestDecoderKnowsTheSchemaAgain(t *testing.T) {
	var d arrowio.Decoder
	a, b := encode(t, wide(t, 3)), column(t, ints(1, 2))
	var schemas []*arrow.Schema
	for _, frame := range [][]byte{a, a, b, a} {
		rec, err := d.Decode(frame, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := arrowio.Decode(frame, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !array.RecordEqual(rec, plain) || !rec.Schema().Equal(plain.Schema()) {
			t.Errorf("got %v, want %v", rec, plain)
		}
		schemas = append(schemas, rec.Schema())
		rec.Release()
		plain.Release()
	}
	if schemas[0] != schemas[1] || schemas[1] == schemas[3] {
		t.Error("the schema of the last frame is shared, and no other")
	}
}

func TestDecodersKnowEachStream(t *testing.T) {
	var ds arrowio.Decoders
	a, b := encode(t, wide(t, 3)), column(t, ints(1, 2))
	schemas := map[string]*arrow.Schema{}
	for range 3 { // in turn, which one Decoder would not know again
		for stream, frame := range map[string][]byte{"a": a, "b": b} {
			d := ds.For(stream)
			var body int64
			rec, err := d.Decode(frame, nil, arrowio.CountBody(&body))
			if err != nil {
				t.Fatal(err)
			}
			if want, err := arrowio.FrameBodyBytes(frame); err != nil || body != want {
				t.Errorf("body of %d bytes, want %d, %v", body, want, err)
			}
			if before := schemas[stream]; before != nil && before != rec.Schema() {
				t.Error("stream", stream, "has its schema read again")
			}
			schemas[stream] = rec.Schema()
			if got, want := d.Fingerprint(rec.Schema()), arrowio.Fingerprint(rec.Schema()); got != want {
				t.Errorf("fingerprint %s, want %s", got, want)
			}
			rec.Release()
		}
	}
	// Another schema than the last frame's has its own fingerprint.
	if got, want := ds.For("a").Fingerprint(schemas["b"]), arrowio.Fingerprint(schemas["b"]); got != want {
		t.Errorf("fingerprint %s, want %s", got, want)
	}
	if n := testing.AllocsPerRun(100, func() { ds.For("a").Fingerprint(schemas["a"]) }); n != 0 {
		t.Errorf("%v allocations for a fingerprint that is known", n)
	}
	// It keeps a bounded number of streams, and the others' schemas are read anew.
	a1 := ds.For("a")
	for i := range 10_000 {
		ds.For(strconv.Itoa(i))
	}
	if n := arrowio.DecodersKept(&ds); n > 128 {
		t.Errorf("%d streams are remembered", n)
	}
	rec, err := a1.Decode(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	if rec.Schema() != schemas["a"] {
		t.Error("a Decoder forgot since its Decoders did")
	}
}
