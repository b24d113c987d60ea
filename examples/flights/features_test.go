package flights_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/stages"
	"github.com/stokehold/stokehold/stages/ingest"
	"github.com/stokehold/stokehold/stages/stagetest"
)

var featureInputs = []stages.Binding{{Dataset: flights.Schedule}, {Dataset: flights.Labels}}

func makeFeatures(lake *stagetest.Lake, output, params string) error {
	_, err := lake.Execute(context.Background(), flights.MakeFeatures{}, stages.Assignment{
		Run: "r", Stage: "features", Inputs: featureInputs, Output: output, Params: []byte(params),
	})
	return err
}

// week draws a week's flights and delays.
func week(t *rapid.T, start time.Time) (schedule, labels arrow.RecordBatch) {
	airports := []string{"ATL", "ORD", "SFO"}
	full := flights.FileSchema()
	s := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{full.Field(0), full.Field(2), full.Field(3), full.Field(4)}, nil))
	defer s.Release()
	l := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{full.Field(1)}, nil))
	defer l.Release()
	for range rapid.IntRange(1, 12).Draw(t, "flights") {
		at := start.Add(time.Duration(rapid.IntRange(0, 7*24*60-1).Draw(t, "minute")) * time.Minute)
		s.Field(0).(*array.TimestampBuilder).Append(arrow.Timestamp(at.UnixMicro()))
		s.Field(1).(*array.Int64Builder).Append(rapid.Int64Range(30, 3000).Draw(t, "miles"))
		s.Field(2).(*array.StringBuilder).Append(rapid.SampledFrom(airports).Draw(t, "origin"))
		s.Field(3).(*array.StringBuilder).Append(rapid.SampledFrom(airports).Draw(t, "destination"))
		l.Field(0).(*array.Int64Builder).Append(rapid.Int64Range(-30, 90).Draw(t, "delay"))
	}
	return s.NewRecordBatch(), l.NewRecordBatch()
}

func delays(t *rapid.T, rows int64) arrow.RecordBatch {
	l := array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema([]arrow.Field{flights.FileSchema().Field(1)}, nil))
	defer l.Release()
	for range rows {
		l.Field(0).(*array.Int64Builder).Append(rapid.Int64Range(-30, 90).Draw(t, "other delay"))
	}
	return l.NewRecordBatch()
}

// No leakage: whatever happens to the delays of week w and later, features of
// week w stay the same to the bit.
func TestFeaturesKnowNothingOfTheFuture(t *testing.T) {
	start := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		lake := stagetest.NewLake()
		weeks := rapid.IntRange(2, 5).Draw(t, "weeks")
		var rows []int64
		for w := range weeks {
			s, l := week(t, start.Add(time.Duration(w)*flights.Week))
			rows = append(rows, s.NumRows())
			if err := errors.Join(lake.Put(flights.Schedule, uint64(w), s), lake.Put(flights.Labels, uint64(w), l)); err != nil {
				t.Fatal(err)
			}
		}
		all := `{"from":0,"to":` + string(rune('0'+weeks)) + `}`
		if err := makeFeatures(lake, "before", all); err != nil {
			t.Fatal(err)
		}
		cut := rapid.IntRange(0, weeks-1).Draw(t, "cut")
		for w := cut; w < weeks; w++ {
			if err := lake.Put(flights.Labels, uint64(w), delays(t, rows[w])); err != nil {
				t.Fatal(err)
			}
		}
		if err := makeFeatures(lake, "after", all); err != nil {
			t.Fatal(err)
		}
		for w := range uint64(cut + 1) {
			if !bytes.Equal(lake.Bytes("before", w), lake.Bytes("after", w)) {
				t.Fatalf("features of week %d changed with delays of week %d and later", w, cut)
			}
		}
	})
}

// The last week can be made although its delays do not exist, and in parts.
func TestFeaturesOfAnUnlabelledWeek(t *testing.T) {
	start := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		lake := stagetest.NewLake()
		for w := range uint64(3) {
			s, l := week(t, start.Add(time.Duration(w)*flights.Week))
			if err := lake.Put(flights.Schedule, w, s); err != nil {
				t.Fatal(err)
			}
			if w < 2 {
				if err := lake.Put(flights.Labels, w, l); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := makeFeatures(lake, "whole", `{"from":0,"to":3}`); err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{`{"from":0,"to":2}`, `{"from":2,"to":3}`} {
			if err := makeFeatures(lake, "parts", part); err != nil {
				t.Fatal(err)
			}
		}
		for w := range uint64(3) {
			if !bytes.Equal(lake.Bytes("whole", w), lake.Bytes("parts", w)) {
				t.Fatalf("week %d depends on how the work was divided", w)
			}
			rec, err := lake.Batch("whole", w)
			if err != nil {
				t.Fatal(err)
			}
			for c := range int(rec.NumCols()) {
				for _, v := range rec.Column(c).(*array.Float32).Float32Values() {
					if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
						t.Fatalf("week %d: %s is %v", w, rec.ColumnName(c), v)
					}
				}
			}
			rec.Release()
		}
		if err := makeFeatures(lake, "late", `{"from":0,"to":4}`); err == nil {
			t.Fatal("features were made of a week that does not exist")
		}
	})
}

func TestEmbeddedDataAreWhatTheReadmeSays(t *testing.T) {
	d := openData(t)
	sum, err := d.Source.SHA256(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("data/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), sum) {
		t.Errorf("data/README.md does not name the digest %s", sum)
	}
	rows, err := d.Source.Rows(t.Context())
	if err != nil || rows != 300_000 || d.Weeks != 26 || !d.Start.Equal(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%d rows, %d weeks from %v, %v", rows, d.Weeks, d.Start, err)
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine.csv")
	for name, c := range map[string]struct{ data, says string }{
		"no delay":   {"date,distance,origin,destination\n2001-01-01,100,A,B\n", `column "delay"`},
		"few weeks":  {"date,delay,distance,origin,destination\n2001-01-01 10:00,5,100,A,B\n", "1 of the 8 weeks"},
		"truncated":  {"date,delay,distance,origin,destination\n2001-01-01 10:00,5,10", "cut off"},
		"text delay": {"date,delay,distance,origin,destination\n2001-01-01 10:00,late,100,A,B\n", `"late" is not of type int64`},
	} {
		if err := os.WriteFile(path, []byte(c.data), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := flights.Open(t.Context(), path)
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "mine.csv") {
			t.Errorf("%s: %v, want mine.csv and %q", name, err, c.says)
		}
	}
	var e *ingest.Error
	if _, err := flights.Open(t.Context(), path+".absent"); !errors.As(err, &e) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func BenchmarkFeatures(b *testing.B) {
	d, err := flights.Open(b.Context(), "")
	if err != nil {
		b.Fatal(err)
	}
	lake := stagetest.NewLake()
	for name, cols := range map[string][]string{flights.Schedule: {"date", "distance", "origin", "destination"}, flights.Labels: {"delay"}} {
		s := &ingest.Stage{Source: d.Source, Columns: cols}
		if _, err := lake.Execute(b.Context(), s, stages.Assignment{Run: "r", Stage: "in", Output: name}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		if err := makeFeatures(lake, "f"+string(rune('a'+n%26))+time.Now().String(), `{"from":0,"to":26}`); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(300_000*float64(n)/b.Elapsed().Seconds(), "rows/s")
}
