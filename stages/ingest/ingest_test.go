package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/ingest"
	"github.com/stokehold/stokehold/stages/stagetest"
)

var (
	wanted = arrow.NewSchema([]arrow.Field{
		{Name: "at", Type: &arrow.TimestampType{Unit: arrow.Microsecond}},
		{Name: "n", Type: arrow.PrimitiveTypes.Int64},
		{Name: "who", Type: arrow.BinaryTypes.String},
	}, nil)
	daily = ingest.ByTime{Column: "at", Width: 24 * time.Hour}
)

const good = "who,extra,at,n\n" +
	"b,1,2001-01-02 10:00:00,2\n" + // rows may come in any order
	"a,2,2001-01-01 09:30:00,1\n" +
	"c,3,2001-01-02 11:00:00,-3\n"

func source(t *testing.T, data string) *ingest.Source {
	t.Helper()
	s, err := ingest.NewSource(ingest.Config{Data: []byte(data), Name: "flights.csv", Schema: wanted, Key: daily})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func run(t *testing.T, s *ingest.Stage, params string) (*stagetest.Lake, stages.Result, error) {
	t.Helper()
	lake := stagetest.NewLake()
	r, err := lake.Execute(t.Context(), s, stages.Assignment{Run: "r", Stage: "ingest", Output: "days", Params: []byte(params)})
	return lake, r, err
}

func TestIngestWritesOneBatchForEachKey(t *testing.T) {
	lake, r, err := run(t, &ingest.Stage{Source: source(t, good), Columns: []string{"n", "who"}}, "{}")
	if err != nil {
		t.Fatal(err)
	}
	if r.Data.BatchesOut != 2 || r.Rows != 3 {
		t.Errorf("wrote %+v", r)
	}
	rec, err := lake.Batch("days", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	n, who := rec.Column(0).(*array.Int64), rec.Column(1).(*array.String)
	if n.Len() != 2 || n.Value(0) != 2 || n.Value(1) != -3 || who.Value(0) != "b" || who.Value(1) != "c" {
		t.Errorf("day 1 is %v", rec)
	}
}

func TestWrongFilesLeaveNothingBehind(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		is   error
		says []string
	}{
		"no column":      {"at,who\n2001-01-01,a\n", ingest.ErrSchema, []string{"flights.csv", `column "n"`, "missing"}},
		"bad number":     {good + "d,4,2001-01-03,x\n", ingest.ErrValue, []string{`column "n"`, "row 4", `"x"`, "int64"}},
		"bad time":       {good + "d,4,yesterday,1\n", ingest.ErrValue, []string{`column "at"`, "row 4", "yesterday"}},
		"empty text":     {good + ",4,2001-01-03,1\n", ingest.ErrValue, []string{`column "who"`}},
		"cut off":        {good[:len(good)-25], ingest.ErrFormat, []string{"flights.csv", "cut off"}},
		"gap":            {good + "d,4,2001-01-05,1\n", ingest.ErrValue, []string{"gap", "batch 2"}},
		"header alone":   {"who,at,n\n", ingest.ErrFormat, []string{"no rows"}},
		"not a table":    {"\x00\xff\xfe\x01", ingest.ErrFormat, nil},
		"Parquet's name": {"PAR1 and no more", ingest.ErrFormat, []string{"flights.csv"}},
		"far future":     {good + "d,4,2901-01-05,1\n", ingest.ErrLimit, []string{`column "at"`, "row 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			lake, _, err := run(t, &ingest.Stage{Source: source(t, c.data)}, "{}")
			if !errors.Is(err, c.is) || !stages.IsPermanent(err) {
				t.Fatalf("%v, want a permanent %v", err, c.is)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if lake.Len("days") != 0 {
				t.Error("something was ingested")
			}
		})
	}
}

func parquetFile(t *testing.T, schema *arrow.Schema, fill func(*array.RecordBuilder)) []byte {
	t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	fill(b)
	rec := b.NewRecordBatch()
	defer rec.Release()
	var out bytes.Buffer
	if err := parquet.Write(&out, rec); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func narrow(t *testing.T) []byte {
	t.Helper()
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "n", Type: arrow.PrimitiveTypes.Int16},
		{Name: "at", Type: &arrow.TimestampType{Unit: arrow.Millisecond}},
		{Name: "who", Type: arrow.BinaryTypes.LargeString},
	}, nil)
	return parquetFile(t, schema, func(b *array.RecordBuilder) {
		for i := range 3 {
			b.Field(0).(*array.Int16Builder).Append(int16(i))
			b.Field(1).(*array.TimestampBuilder).Append(arrow.Timestamp(978307200000 + i*86_400_000))
			b.Field(2).(*array.LargeStringBuilder).Append(fmt.Sprint("w", i))
		}
	})
}

func TestParquetOfNarrowerTypesIsConverted(t *testing.T) {
	lake, _, err := run(t, &ingest.Stage{Source: source(t, string(narrow(t)))}, `{"from":0,"to":3}`)
	if err != nil {
		t.Fatal(err)
	}
	rec, err := lake.Batch("days", 2)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	if !rec.Schema().Equal(wanted) {
		t.Errorf("schema %s, want %s", rec.Schema(), wanted)
	}
	if at := rec.Column(0).(*array.Timestamp).Value(0); at != 978480000000000 || rec.Column(1).(*array.Int64).Value(0) != 2 || rec.Column(2).(*array.String).Value(0) != "w2" {
		t.Errorf("day 2 is %v", rec)
	}
}

func TestWrongParquetNamesTheColumn(t *testing.T) {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "at", Type: arrow.BinaryTypes.String}, {Name: "n", Type: arrow.PrimitiveTypes.Int64}, {Name: "who", Type: arrow.BinaryTypes.String},
	}, nil)
	data := parquetFile(t, schema, func(b *array.RecordBuilder) {
		b.Field(0).(*array.StringBuilder).Append("2001-01-01")
		b.Field(1).(*array.Int64Builder).Append(1)
		b.Field(2).(*array.StringBuilder).Append("a")
	})
	_, _, err := run(t, &ingest.Stage{Source: source(t, string(data))}, "{}")
	if !errors.Is(err, ingest.ErrSchema) || !strings.Contains(err.Error(), `column "at"`) || !strings.Contains(err.Error(), "have utf8, want timestamp") {
		t.Errorf("text for a timestamp: %v", err)
	}
	nullable := wanted.Fields()
	for i := range nullable {
		nullable[i].Nullable = true
	}
	data = parquetFile(t, arrow.NewSchema(nullable, nil), func(b *array.RecordBuilder) {
		b.Field(0).(*array.TimestampBuilder).Append(0)
		b.Field(1).(*array.Int64Builder).AppendNull()
		b.Field(2).(*array.StringBuilder).Append("a")
	})
	if _, _, err = run(t, &ingest.Stage{Source: source(t, string(data))}, "{}"); !errors.Is(err, ingest.ErrValue) || !strings.Contains(err.Error(), `row 1 column "n"`) {
		t.Errorf("null: %v", err)
	}
}

func TestTruncatedParquetIsRefusedAtEveryByte(t *testing.T) {
	whole := narrow(t)
	for n := 1; n < len(whole); n++ {
		lake, _, err := run(t, &ingest.Stage{Source: source(t, string(whole[:n]))}, "{}")
		var e *ingest.Error
		if !errors.As(err, &e) || lake.Len("days") != 0 {
			t.Fatalf("cut at byte %d of %d: %v, %d batches", n, len(whole), err, lake.Len("days"))
		}
	}
}

func TestChangedFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f.csv")
	write := func(s string, age time.Duration) {
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, []byte(s), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
	}
	write(good, time.Hour)
	s, err := ingest.NewSource(ingest.Config{Path: path, Schema: wanted, Key: daily})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Rows(t.Context()); n != 3 || err != nil {
		t.Fatalf("%d rows, %v", n, err)
	}
	write(good+"d,1,2001-01-03,1\n", time.Minute)
	if n, err := s.Rows(t.Context()); n != 4 || err != nil {
		t.Errorf("%d rows after the change, %v", n, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Rows(t.Context()); !errors.Is(err, os.ErrNotExist) || !errors.Is(err, ingest.ErrFormat) {
		t.Errorf("after removal: %v", err)
	}
}

func TestLimits(t *testing.T) {
	for name, cfg := range map[string]ingest.Config{"rows": {MaxRows: 2}, "bytes": {MaxBytes: 20}} {
		cfg.Data, cfg.Name, cfg.Schema, cfg.Key = []byte(good), "f.csv", wanted, daily
		s, err := ingest.NewSource(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Len(context.Background()); !errors.Is(err, ingest.ErrLimit) {
			t.Errorf("%s: %v, want ErrLimit", name, err)
		}
	}
	if _, err := ingest.NewSource(ingest.Config{Schema: arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.FixedWidthTypes.Boolean}}, nil)}); err == nil ||
		!strings.Contains(err.Error(), "Key") || !strings.Contains(err.Error(), "Path") || !strings.Contains(err.Error(), "bool") {
		t.Errorf("faults of a configuration: %v", err)
	}
}

func FuzzCSV(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("who,at,n\na,2001-01-01T10:00,1\n"))
	f.Add([]byte("\ufeffwho,at,n\n\"a\nb\",2001/01/01 10:00,9\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		s, err := ingest.NewSource(ingest.Config{Data: data, Name: "f", Schema: wanted, Key: daily, MaxRows: 1000})
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Len(context.Background())
		if err != nil {
			var e *ingest.Error
			if !errors.As(err, &e) {
				t.Fatalf("an error of another type: %v", err)
			}
			return
		}
		rows := int64(0)
		for k := range n {
			b, err := s.Batch(context.Background(), k)
			if err != nil || b.NumRows() == 0 {
				t.Fatalf("batch %d: %v", k, err)
			}
			rows += b.NumRows()
			b.Release()
		}
		if have, _ := s.Rows(context.Background()); have != rows {
			t.Fatalf("%d rows in batches, %d in the file", rows, have)
		}
	})
}
