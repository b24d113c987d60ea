package parquet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync/atomic"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
)

// DefaultMaxBytes is what a batch may take in memory while it is read, if
// ScanOptions does not say.
const DefaultMaxBytes = 4 << 30

// File is a Parquet file being read. Row groups may be read concurrently if the
// underlying reader allows it.
type File struct {
	meta   *metadata
	source *source
	tree   *tree
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

// Bytes is a file in memory, which Open reads in place. It must not change while
// batches are read from it.
type Bytes []byte

// ReadAt implements io.ReaderAt.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(b).ReadAt(p, off) }

// view is part of a file in memory; ok is false where it is not, or has no such part.
func (s *source) view(off, n int64) (part []byte, ok bool) {
	b, ok := s.ReaderAt.(Bytes)
	if !ok || off < 0 || n < 0 || off > int64(len(b)) || n > int64(len(b))-off {
		return nil, false
	}
	return b[off : off+n : off+n], true
}

// fault is the error of reading something: the reader's own if that failed,
// otherwise the file is damaged, unless err says something else of it.
func (s *source) fault(err error, f string, args ...any) error {
	if failed := s.failed.Load(); failed != nil {
		return fmt.Errorf("parquet: read: %w", *failed)
	}
	if errors.Is(err, ErrLimit) || errors.Is(err, ErrUnsupported) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return corrupt(f+": %w", append(args, err)...)
}

// Open reads the footer of a file of the given size in bytes. The error wraps
// arrowio.ErrCorrupt if it is not a whole Parquet file, is an *UnsupportedError if
// a column has no Arrow type here, and wraps r's error if reading fails.
func Open(r io.ReaderAt, size int64) (file *File, err error) {
	defer guard("open", &err)
	src := &source{ReaderAt: r, size: size}
	m, err := readMetadata(src, size)
	if err != nil {
		return nil, src.fault(err, "open file of %d bytes", size)
	}
	t, err := planRead(m)
	if err != nil {
		return nil, src.fault(err, "open")
	}
	if err := m.valid(size, len(t.leaves)); err != nil {
		return nil, src.fault(err, "open")
	}
	return &File{meta: m, source: src, tree: t}, nil
}

// Schema is the Arrow schema of the batches.
func (f *File) Schema() *arrow.Schema { return f.tree.schema }

// NumRows is the number of rows that the footer states.
func (f *File) NumRows() int64 { return f.meta.rows }

// RowGroups is the number of row groups.
func (f *File) RowGroups() int { return len(f.meta.groups) }

// RowGroupRows is the number of rows of a row group.
func (f *File) RowGroupRows(i int) int64 { return f.meta.groups[i].rows }

// ScanOptions say what of a file to read, and in which pieces. The zero value is
// the whole file, a batch for each row group.
type ScanOptions struct {
	// Columns are the fields to read, in the file's order whatever theirs: names of
	// top-level fields, or paths of names joined by dots into structs. nil is all.
	Columns []string
	// Where leaves out row groups that have no row for which it is true, as their
	// statistics tell. Rows are not filtered: of the others all rows are read.
	Where Predicate
	// BatchRows is the most rows of a batch; 0 is a row group. Batches do not cross
	// row groups.
	BatchRows int
	// MaxBytes bounds the memory that a batch takes while it is read, in bytes: its
	// arrays, and the decompressed pages that they come from. More is a *LimitError.
	// Default DefaultMaxBytes.
	MaxBytes int64
	// Concurrency is how many columns are decoded at once. Default GOMAXPROCS.
	Concurrency int
	// Allocate gives the memory for the values of fixed width, as far as their size is
	// known before, and for the offsets of strings: that many bytes, 64-byte aligned
	// and of any content, or nil for the Go heap. Batches then lie there in part or as
	// a whole; the memory is the caller's, who uses it for something else only when a
	// batch, or the error in its place, has been dealt with. It is called by several
	// goroutines at once. nil: all is on the Go heap.
	Allocate func(bytes int) []byte
}

// bytes is memory for values: empty, and of that capacity.
func (o *ScanOptions) bytes(capacity int64) []byte {
	if o.Allocate != nil && capacity > 0 {
		if b := o.Allocate(int(capacity)); b != nil {
			return b[:0:capacity]
		}
	}
	return make([]byte, 0, capacity)
}

func (o ScanOptions) check() (ScanOptions, error) {
	if o.BatchRows < 0 || o.MaxBytes < 0 || o.Concurrency < 0 {
		return o, fmt.Errorf("parquet: scan: %d rows of %d bytes, %d columns at once: want no negative numbers", o.BatchRows, o.MaxBytes, o.Concurrency)
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Concurrency == 0 {
		o.Concurrency = runtime.GOMAXPROCS(0)
	}
	return o, nil
}

// Scan reads batches. Each is valid until the loop body ends unless retained. A
// scan without a Where of a file without rows gives one batch without rows, so that
// the schema is never lost. Errors are those of Open, an *UnsupportedError or
// *LimitError, ErrColumn, and the context's.
func (f *File) Scan(ctx context.Context, options ScanOptions) iter.Seq2[arrow.RecordBatch, error] {
	return func(yield func(arrow.RecordBatch, error) bool) {
		o, err := options.check()
		if err != nil {
			yield(nil, err)
			return
		}
		t, err := f.tree.project(o.Columns)
		if err != nil {
			yield(nil, err)
			return
		}
		groups, err := f.Matching(o.Where)
		if err != nil {
			yield(nil, err)
			return
		}
		if f.RowGroups() == 0 && o.Where == nil {
			rec, err := t.empty(len(f.tree.leaves))
			if yield(rec, err); rec != nil {
				rec.Release()
			}
			return
		}
		s := &scan{file: f, tree: t, options: o}
		for _, i := range groups {
			for rec, err := range s.group(ctx, i) {
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
}

// Batches is a Scan of everything, a batch for each row group.
func (f *File) Batches() iter.Seq2[arrow.RecordBatch, error] {
	return f.Scan(context.Background(), ScanOptions{})
}

// RowGroup reads one row group as a batch, which the caller releases.
func (f *File) RowGroup(i int) (arrow.RecordBatch, error) {
	if i < 0 || i >= f.RowGroups() {
		return nil, fmt.Errorf("parquet: row group %d of %d", i, f.RowGroups())
	}
	o, _ := ScanOptions{}.check() // the zero value is valid
	s := &scan{file: f, tree: f.tree, options: o}
	for rec, err := range s.group(context.Background(), i) {
		return rec, err
	}
	return f.tree.empty(len(f.tree.leaves))
}

// empty is a batch without rows.
func (t *tree) empty(leaves int) (arrow.RecordBatch, error) {
	s := &scan{tree: t, readers: make([]*columnReader, leaves)}
	b := &budget{limit: DefaultMaxBytes}
	for _, leaf := range t.leaves {
		r := &columnReader{node: leaf, budget: b, options: &s.options, keepLevels: len(leaf.path) > 1}
		r.clear(0)
		s.readers[leaf.firstLeaf] = r
	}
	return s.assemble(0, b)
}

// scan keeps what one row group leaves to the next.
type scan struct {
	file    *File
	tree    *tree
	options ScanOptions
	readers []*columnReader // by leaf of the file
}

// group reads the batches of a row group. The caller releases them.
func (s *scan) group(ctx context.Context, i int) iter.Seq2[arrow.RecordBatch, error] {
	return func(yield func(arrow.RecordBatch, error) bool) {
		g := &s.file.meta.groups[i]
		fault := func(err error) { yield(nil, s.file.source.fault(err, "row group %d", i)) }
		b := &budget{limit: s.options.MaxBytes}
		if s.readers == nil {
			s.readers = make([]*columnReader, len(g.chunks))
		}
		for _, leaf := range s.tree.leaves {
			k := leaf.firstLeaf
			if s.readers[k] == nil {
				s.readers[k] = &columnReader{options: &s.options}
			}
			if err := s.readers[k].begin(leaf, &g.chunks[k], g.rows, s.file.source, b); err != nil {
				fault(fmt.Errorf("column %q: %w", leaf.name(), err))
				return
			}
		}
		for left := g.rows; left > 0; {
			n := left
			if s.options.BatchRows > 0 {
				n = min(n, int64(s.options.BatchRows))
			}
			if n > arrowio.MaxRows {
				fault(fmt.Errorf("batch of %d rows", n))
				return
			}
			rec, err := s.batch(ctx, int(n), b)
			if err != nil {
				fault(err)
				return
			}
			left -= n
			if left == 0 {
				if err := s.finished(); err != nil {
					rec.Release()
					fault(err)
					return
				}
			}
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// finished makes sure that the columns have no more values than the row group has
// rows.
func (s *scan) finished() error {
	for _, leaf := range s.tree.leaves {
		r := s.readers[leaf.firstLeaf]
		if n := int64(r.pages.left) + r.pages.entries + int64(len(r.defs)); n > 0 {
			return fmt.Errorf("column %q: %d values after the last row", leaf.name(), n)
		}
	}
	return nil
}

func (s *scan) batch(ctx context.Context, rows int, b *budget) (rec arrow.RecordBatch, err error) {
	defer guard("read", &err)
	// What the batch before took is the caller's; pages that are open stay taken.
	held := int64(0)
	for _, leaf := range s.tree.leaves {
		held += s.readers[leaf.firstLeaf].pages.held
	}
	b.used.Store(held)
	if err := s.columns(ctx, rows); err != nil {
		return nil, err
	}
	return s.assemble(rows, b)
}

// assemble makes a batch of what the leaves have read.
func (s *scan) assemble(rows int, b *budget) (arrow.RecordBatch, error) {
	a := &assembler{columns: s.readers, budget: b}
	cols := make([]arrow.Array, len(s.tree.roots))
	defer func() {
		for _, c := range cols {
			if c != nil {
				c.Release()
			}
		}
	}()
	for i, root := range s.tree.roots {
		d, err := a.core(root)
		if err == nil {
			d, err = a.wrap(root, d)
		}
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", root.name(), err)
		}
		if d.Len() != rows {
			return nil, fmt.Errorf("column %q: %d values for %d rows", root.name(), d.Len(), rows)
		}
		cols[i] = array.MakeFromData(d)
		d.Release()
	}
	return array.NewRecordBatch(s.tree.schema, cols, int64(rows)), nil
}

// columns reads the leaves, some at a time.
func (s *scan) columns(ctx context.Context, rows int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	read := func(leaf *node) (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("malformed: %v", p)
			}
			if err != nil && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrUnsupported) {
				err = fmt.Errorf("column %q: %w", leaf.name(), err)
			}
		}()
		return s.readers[leaf.firstLeaf].read(rows)
	}
	if s.options.Concurrency == 1 || len(s.tree.leaves) == 1 {
		for _, leaf := range s.tree.leaves {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := read(leaf); err != nil {
				return err
			}
		}
		return nil
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(s.options.Concurrency)
	for _, leaf := range s.tree.leaves {
		work.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return read(leaf)
		})
	}
	return work.Wait()
}

// Read reads a whole file, one batch per row group, which the caller releases.
// The errors are those of Scan.
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
