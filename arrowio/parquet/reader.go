package parquet

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	pq "github.com/parquet-go/parquet-go"

	"github.com/stokehold/stokehold/arrowio"
)

// File is a Parquet file being read. Row groups may be read concurrently if the
// underlying reader allows it.
type File struct {
	f      *pq.File
	source *source
	schema *arrow.Schema
}

// source remembers that reading failed, so that a broken disk or network is not
// taken for a damaged file.
type source struct {
	io.ReaderAt
	size   int64
	failed atomic.Pointer[error]
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size { // the footer points there: damage, not a failure
		return 0, fmt.Errorf("reference to byte %d of a file of %d", off, s.size)
	}
	n, err := s.ReaderAt.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		s.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (s *source) corrupt(f string, args ...any) error {
	if err := s.failed.Load(); err != nil {
		return fmt.Errorf("parquet: read: %w", *err)
	}
	return corrupt(f, args...)
}

// Open reads the footer of a file of the given size in bytes. The error wraps
// arrowio.ErrCorrupt if it is not a whole Parquet file, is an *UnsupportedError if
// a column has no Arrow type here, and wraps r's error if reading fails.
func Open(r io.ReaderAt, size int64) (file *File, err error) {
	defer guard("open", &err)
	src := &source{ReaderAt: r, size: size}
	f, err := pq.OpenFile(src, size, pq.SkipPageIndex(true), pq.SkipBloomFilters(true))
	if err != nil {
		return nil, src.corrupt("open file of %d bytes: %w", size, err)
	}
	schema, err := toArrow(f)
	if errors.Is(err, ErrUnsupported) {
		return nil, err
	}
	if err != nil {
		return nil, corrupt("open: %w", err)
	}
	return &File{f: f, source: src, schema: schema}, nil
}

// Schema is the Arrow schema of the batches.
func (f *File) Schema() *arrow.Schema { return f.schema }

// NumRows is the number of rows that the footer states.
func (f *File) NumRows() int64 { return f.f.NumRows() }

// RowGroups is the number of row groups.
func (f *File) RowGroups() int { return len(f.f.RowGroups()) }

// RowGroup reads one row group as a batch, which the caller releases.
func (f *File) RowGroup(i int) (rec arrow.RecordBatch, err error) {
	defer guard("read", &err)
	groups := f.f.RowGroups()
	if i < 0 || i >= len(groups) {
		return nil, fmt.Errorf("parquet: row group %d of %d", i, len(groups))
	}
	rows := groups[i].NumRows()
	if rows < 0 || rows > arrowio.MaxRows {
		return nil, corrupt("row group %d of %d rows", i, rows)
	}
	chunks := groups[i].ColumnChunks()
	if len(chunks) != f.schema.NumFields() {
		return nil, corrupt("row group %d of %d columns, want %d", i, len(chunks), f.schema.NumFields())
	}
	cols := make([]arrow.Array, len(chunks))
	defer func() {
		for _, c := range cols {
			if c != nil {
				c.Release()
			}
		}
	}()
	for j, chunk := range chunks {
		if cols[j], err = readColumn(chunk, f.schema.Field(j), rows); err != nil {
			return nil, f.source.corrupt("row group %d, column %q: %w", i, f.schema.Field(j).Name, err)
		}
	}
	return array.NewRecordBatch(f.schema, cols, rows), nil
}

// Batches reads the row groups in order. Each batch is valid until the loop body
// ends unless retained. A file without rows gives one batch without rows, so
// that the schema is never lost.
func (f *File) Batches() iter.Seq2[arrow.RecordBatch, error] {
	return func(yield func(arrow.RecordBatch, error) bool) {
		if f.RowGroups() == 0 {
			rec, err := f.empty()
			if yield(rec, err); rec != nil {
				rec.Release()
			}
			return
		}
		for i := range f.RowGroups() {
			rec, err := f.RowGroup(i)
			more := yield(rec, err)
			if rec != nil {
				rec.Release()
			}
			if !more || err != nil {
				return
			}
		}
	}
}

func (f *File) empty() (arrow.RecordBatch, error) {
	b := array.NewRecordBuilder(memory.NewGoAllocator(), f.schema)
	defer b.Release()
	return b.NewRecordBatch(), nil
}

// Read reads a whole file, one batch per row group, which the caller releases.
// The errors are those of Open.
func Read(r io.ReaderAt, size int64) ([]arrow.RecordBatch, error) {
	f, err := Open(r, size)
	if err != nil {
		return nil, err
	}
	var all []arrow.RecordBatch
	for rec, err := range f.Batches() {
		if err != nil {
			for _, done := range all {
				done.Release()
			}
			return nil, err
		}
		rec.Retain()
		all = append(all, rec)
	}
	return all, nil
}

// guard turns a panic of the Parquet library, which trusts what it reads, into
// an error.
func guard(op string, err *error) {
	if p := recover(); p != nil {
		*err = corrupt("%s: malformed: %v", op, p)
	}
}

func corrupt(f string, args ...any) error {
	return fmt.Errorf("parquet: %w: "+f, append([]any{arrowio.ErrCorrupt}, args...)...)
}

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
