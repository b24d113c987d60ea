package arrowio_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

// aligned returns n bytes on an Alignment boundary.
func aligned(n int) []byte {
	b := make([]byte, n+arrowio.Alignment)
	skip := -int(address(b)) & (arrowio.Alignment - 1)
	return b[skip : skip+n : skip+n]
}

func TestWriteToGivesTheSameBytes(t *testing.T) {
	for _, rows := range []int{0, 1, 1000} {
		rec := wide(t, rows)
		f, err := arrowio.Prepare(rec)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		n, err := f.WriteTo(&out)
		if err != nil || n != f.Size() || !bytes.Equal(out.Bytes(), encode(t, rec)) {
			t.Errorf("%d rows: wrote %d bytes of %d, %v", rows, n, f.Size(), err)
		}
		full := errors.New("full")
		if _, err := f.WriteTo(failing{full}); !errors.Is(err, full) {
			t.Error(err)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// TestSettleAroundBuffers frames two columns that lie in the memory already, out
// of order and with other bytes between, and one that does not.
func TestSettleAroundBuffers(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "a", Type: arrow.PrimitiveTypes.Int64}, {Name: "b", Type: arrow.PrimitiveTypes.Int64}, {Name: "c", Type: arrow.PrimitiveTypes.Int64},
	}, nil)
	head, err := arrowio.HeadBytes(schema, 1000)
	if err != nil {
		t.Fatal(err)
	}
	const rows, gap = 20, 256
	region := aligned(int(head) + 8*gap)
	at := func(offset int64, from int) arrow.Array {
		values := region[offset : offset+8*rows]
		copy(values, arrow.Int64Traits.CastToBytes(seq(from, rows)))
		data := array.NewData(arrow.PrimitiveTypes.Int64, rows, []*memory.Buffer{nil, memory.NewBufferBytes(values)}, nil, 0, 0)
		defer data.Release()
		return array.NewInt64Data(data)
	}
	low := head
	second, first := at(low, 100), at(low+3*gap, 0)
	copy(region[low+2*gap:], "somebody else's")
	free := low + 4*gap
	elsewhere := array.NewInt64Builder(memory.NewGoAllocator())
	elsewhere.AppendValues(seq(200, rows), nil)
	rec := array.NewRecordBatch(schema, []arrow.Array{first, second, elsewhere.NewArray()}, rows)
	f, err := arrowio.Prepare(rec)
	if err != nil {
		t.Fatal(err)
	}
	var copies arrowio.Copies
	before := bytes.Clone(region)
	for _, short := range []int64{free, free + 8*rows} {
		if _, err := f.Settle(region[:short], free, &copies); !errors.Is(err, arrowio.ErrSize) || !bytes.Equal(region, before) || copies.Batches() != 0 {
			t.Errorf("into %d bytes: %v", short, err)
		}
	}
	if _, err := f.Settle(region[head-64:], free-head+64, nil); !errors.Is(err, arrowio.ErrSize) || !bytes.Equal(region, before) {
		t.Error("a head that is too small:", err)
	}
	if _, err := f.Settle(region[8:], free, nil); err == nil {
		t.Error("memory that is not aligned")
	}
	if _, err := f.Settle(region, int64(len(region))+1, nil); err == nil {
		t.Error("more memory than there is")
	}
	s, err := f.Settle(region, free, &copies)
	if err != nil {
		t.Fatal(err)
	}
	if s.Copied != 192 || copies.Bytes() != 192 || copies.Batches() != 1 || s.Head > head || s.Length != free+192+8 {
		t.Errorf("%+v, counted %d, head %d, free %d", s, copies.Bytes(), head, free)
	}
	if string(region[low+2*gap:][:15]) != "somebody else's" {
		t.Error("a gap was written to")
	}
	got, err := arrowio.Decode(region[:s.Length], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	if !array.RecordEqual(rec, got) || arrowio.BytesOutside(got, region) != 0 {
		t.Errorf("got %v", got)
	}
	if body, err := arrowio.FrameBodyBytes(region[:s.Length]); err != nil || body != s.Length-s.Head-8 {
		t.Error(body, s, err)
	}
	// The frame is as good as before for other destinations.
	if one, err := arrowio.Encode(rec, nil); err != nil {
		t.Error(err)
	} else if two := make([]byte, f.Size()); true {
		if _, err := f.EncodeTo(two, nil); err != nil || !bytes.Equal(one, two) {
			t.Error("encoding differs after settling:", err)
		}
	}
}

func seq(from, n int) []int64 {
	out := make([]int64, n)
	for i := range out {
		out[i] = int64(from + i)
	}
	return out
}

func TestHeadBytesRefusesWhatCannotBeFramed(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{{Name: "d", Type: arrow.BinaryTypes.String}}, nil)
	plain, err := arrowio.HeadBytes(schema, 1<<20)
	if err != nil || plain%arrowio.Alignment != 0 || plain > 1<<10 {
		t.Error(plain, err)
	}
	schema = arrow.NewSchema([]arrow.Field{{Name: "d", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}}}, nil)
	dict, err := arrowio.HeadBytes(schema, 1<<20)
	if err != nil || dict < plain+1<<17 {
		t.Error(dict, err)
	}
}

func TestSameMemory(t *testing.T) {
	rec := wide(t, 20)
	frame := encode(t, rec)
	one, err := arrowio.Decode(frame, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer one.Release()
	two, err := arrowio.Decode(frame, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer two.Release()
	if !arrowio.SameMemory(one, two) || !arrowio.SameMemory(rec, rec) {
		t.Error("one batch is two")
	}
	cut := one.NewSlice(0, 19)
	defer cut.Release()
	shifted := one.NewSlice(1, 20)
	defer shifted.Release()
	fewer := array.NewRecordBatch(arrow.NewSchema(one.Schema().Fields()[:3], nil), one.Columns()[:3], 20)
	defer fewer.Release()
	for name, other := range map[string]arrow.RecordBatch{"a copy": rec, "a part": cut, "another part": shifted, "fewer columns": fewer} {
		if arrowio.SameMemory(one, other) {
			t.Errorf("%s is taken for the same", name)
		}
	}
}
