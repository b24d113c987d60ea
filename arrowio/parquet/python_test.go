package parquet_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio/parquet"
	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/internal/pythontest"
)

func python(t *testing.T) string {
	t.Helper()
	python := pythontest.Interpreter(t)
	pythontest.Needs(t, python, "duckdb")
	return python
}

func runPeer(t *testing.T, python string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), python, append([]string{"testdata/peer.py"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("peer.py %s: %v\n%s", args[0], err, stderr.Bytes())
	}
	return out
}

// TestReadsOthers holds what we read of files that pyarrow and DuckDB write against
// what pyarrow reads of them.
func TestReadsOthers(t *testing.T) {
	python, dir := python(t), t.TempDir()
	runPeer(t, python, "make", dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.parquet"))
	if err != nil || len(files) < 30 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".parquet")
		t.Run(name, func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				Rows    int64
				Columns map[string]struct {
					Type   string
					Values []any
				}
			}
			text, err := os.ReadFile(strings.TrimSuffix(path, ".parquet") + ".json")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			for _, options := range []parquet.ScanOptions{{}, {BatchRows: 37, Concurrency: 1}} {
				f, err := parquet.Open(bytes.NewReader(raw), int64(len(raw)))
				if err != nil {
					t.Fatal(err)
				}
				have := make([][]any, f.Schema().NumFields())
				for rec, err := range f.Scan(t.Context(), options) {
					if err != nil {
						t.Fatal(err)
					}
					for i, c := range rec.Columns() {
						have[i] = append(have[i], arrowtest.Plain(c)...)
					}
				}
				if len(have) != len(want.Columns) || f.NumRows() != want.Rows {
					t.Fatalf("%d columns of %d rows, want %d of %d", len(have), f.NumRows(), len(want.Columns), want.Rows)
				}
				for i, field := range f.Schema().Fields() {
					if field.Type.ID() == arrow.INTERVAL_MONTH_DAY_NANO {
						continue // 12 bytes to pyarrow; TestReadsIntervalsOfDuckDB has them
					}
					a, _ := json.Marshal(have[i])
					b, _ := json.Marshal(want.Columns[field.Name].Values)
					if !bytes.Equal(a, b) {
						t.Errorf("%s of type %s, to pyarrow %s\nhave %.300s\nwant %.300s", field.Name, field.Type, want.Columns[field.Name].Type, a, b)
					}
				}
			}
		})
	}
	t.Run("intervals", func(t *testing.T) {
		raw, err := os.ReadFile(filepath.Join(dir, "duckdb types.parquet"))
		if err != nil {
			t.Fatal(err)
		}
		recs := read(t, raw)
		iv := recs[0].Column(slices.Index(names(recs[0].Schema()), "iv"))
		if s := fmt.Sprint(arrowtest.Plain(iv)[:2]); s != "[[0 50 0] [0 51 0]]" {
			t.Error(s)
		}
	})
}

func names(s *arrow.Schema) (out []string) {
	for _, f := range s.Fields() {
		out = append(out, f.Name)
	}
	return out
}

// TestOthersRead holds what pyarrow and DuckDB read of our files against what we
// wrote. Types that pyarrow reads as what Parquet says, not as what the Arrow schema
// says, are listed.
func TestOthersRead(t *testing.T) {
	python, dir := python(t), t.TempDir()
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(21, 22)))
	types := map[string]arrow.DataType{}
	add := func(name string, rec arrow.RecordBatch, exact bool, config parquet.WriterConfig) {
		var out bytes.Buffer
		w, err := config.NewWriter(&out, rec.Schema())
		if err == nil {
			err = w.Write(rec)
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatalf("%s: %v", rec.Schema(), err)
		}
		var kinds []string
		for _, f := range rec.Schema().Fields() {
			kinds = append(kinds, f.Type.String())
		}
		text, err := json.Marshal(map[string]any{"values": arrowtest.PlainBatch(rec), "types": kinds, "exact": exact})
		if err != nil {
			t.Fatal(err)
		}
		for ext, raw := range map[string][]byte{".parquet": out.Bytes(), ".json": text} {
			if err := os.WriteFile(filepath.Join(dir, name+ext), raw, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	n := 0
	for _, f := range everyType() {
		if !holds(f.Type) || losesValues(f.Type) {
			continue
		}
		f.Name = "x"
		rec := g.Batch(arrow.NewSchema([]arrow.Field{f}, nil), 70)
		name := fmt.Sprintf("type %03d", n)
		types[name] = f.Type
		n++
		add(name, rec, false, parquet.WriterConfig{PageBytes: 1024})
		rec.Release()
	}
	for _, c := range []parquet.Compression{parquet.Zstd, parquet.Snappy, parquet.Uncompressed} {
		name := fmt.Sprint("flat ", c)
		types[name] = nil
		add(name, batch(t, 3000), true, parquet.WriterConfig{Compression: c, PageBytes: 2048, RowGroupRows: 700})
	}
	// What pyarrow wrote, nested, written again.
	made := t.TempDir()
	runPeer(t, python, "make", made)
	raw, err := os.ReadFile(filepath.Join(made, "v2.0 zstd.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	types["again"] = nil
	add("again", read(t, raw)[0], true, parquet.WriterConfig{PageBytes: 1024})
	var answers map[string]struct{ Pyarrow, Duckdb string }
	if err := json.Unmarshal(runPeer(t, python, "check", dir), &answers); err != nil {
		t.Fatal(err)
	}
	if len(answers) < n+4 {
		t.Fatalf("%d answers", len(answers))
	}
	for name, a := range answers {
		if a.Pyarrow != "" && !pyarrowReadsOtherwise(types[name]) {
			t.Errorf("%s, %v: pyarrow: %.300s", name, types[name], a.Pyarrow)
		}
		// DuckDB has instants in microseconds alone, and refuses what does not fit.
		if a.Duckdb != "" && !strings.Contains(a.Duckdb, "Could not convert Timestamp(MS) to Timestamp(US)") {
			t.Errorf("%s, %v: DuckDB: %.300s", name, types[name], a.Duckdb)
		}
	}
}

// pyarrowReadsOtherwise reports whether pyarrow reads dates in milliseconds and
// times in seconds as what Parquet has in their place.
func pyarrowReadsOtherwise(dt arrow.DataType) bool {
	switch t := dt.(type) {
	case nil:
		return false
	case *arrow.Date64Type:
		return true
	case *arrow.Time32Type:
		return t.Unit == arrow.Second
	case *arrow.DictionaryType:
		return pyarrowReadsOtherwise(t.ValueType)
	case *arrow.RunEndEncodedType:
		return pyarrowReadsOtherwise(t.Encoded())
	case arrow.NestedType:
		return slices.ContainsFunc(t.Fields(), func(f arrow.Field) bool { return pyarrowReadsOtherwise(f.Type) })
	}
	return false
}
