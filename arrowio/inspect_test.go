package arrowio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
)

func TestInspectedMessagesMakeTheFrameAgain(t *testing.T) {
	dict := &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}
	b := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "d", Type: dict},
	}, nil))
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{1, 2, 3}, nil)
	for _, v := range []string{"a", "b", "a"} {
		if err := b.Field(1).(*array.BinaryDictionaryBuilder).AppendString(v); err != nil {
			t.Fatal(err)
		}
	}
	rec := b.NewRecordBatch()
	defer rec.Release()
	frame, err := arrowio.Encode(rec, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := arrowio.Inspect(frame)
	if err != nil {
		t.Fatal(err)
	}
	body, err := arrowio.BodyBytes(rec)
	if err != nil || len(l.Messages) != 3 || l.Rows != 3 || l.BodyBytes != body {
		t.Fatalf("%d messages, %d rows, %d of %d body bytes, %v", len(l.Messages), l.Rows, l.BodyBytes, body, err)
	}
	var again []byte
	for _, m := range l.Messages {
		again = binary.LittleEndian.AppendUint32(again, 0xFFFFFFFF)
		again = binary.LittleEndian.AppendUint32(again, uint32(len(m.Meta)))
		again = append(append(again, m.Meta...), m.Body...)
	}
	again = append(again, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0)
	if !bytes.Equal(again, frame) {
		t.Error("the messages do not make up the frame")
	}
	for _, n := range []int{0, 7, 8, 100, len(frame) / 2} {
		if _, err := arrowio.Inspect(frame[:n]); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
