package parquet

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"sync"
	"unicode/utf8"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
)

// WriterConfig says how files are written. The zero value is the default.
type WriterConfig struct {
	Compression Compression
	// PageBytes is about how large a page is before compression, in bytes. Default
	// 1 MiB. A row is never cut.
	PageBytes int
	// DictionaryBytes bounds the dictionary of a column, in bytes. A column whose
	// distinct values take more has none. Default 1 MiB.
	DictionaryBytes int
	// RowGroupRows is the most rows of a row group; a larger batch becomes several.
	// 0 makes each batch one row group.
	RowGroupRows int64
	// Concurrency is how many columns are encoded at once. Default GOMAXPROCS; the
	// file does not depend on it.
	Concurrency int
}

func (c WriterConfig) check() (WriterConfig, error) {
	var faults []error
	if c.Compression > Uncompressed {
		faults = append(faults, fmt.Errorf("compression %d: want Zstd, Snappy or Uncompressed", c.Compression))
	}
	if c.PageBytes == 0 {
		c.PageBytes = 1 << 20
	}
	if c.DictionaryBytes == 0 {
		c.DictionaryBytes = 1 << 20
	}
	if c.Concurrency == 0 {
		c.Concurrency = runtime.GOMAXPROCS(0)
	}
	if c.PageBytes < 1<<10 || c.PageBytes > 256<<20 {
		faults = append(faults, fmt.Errorf("pages of %d bytes: want 1 KiB to 256 MiB", c.PageBytes))
	}
	if c.DictionaryBytes < 0 || c.DictionaryBytes > 256<<20 {
		faults = append(faults, fmt.Errorf("dictionaries of %d bytes: want at most 256 MiB", c.DictionaryBytes))
	}
	if c.RowGroupRows < 0 {
		faults = append(faults, fmt.Errorf("row groups of %d rows: want 0 or more", c.RowGroupRows))
	}
	if c.Concurrency < 1 {
		faults = append(faults, fmt.Errorf("%d columns at once: want 1 or more", c.Concurrency))
	}
	if len(faults) > 0 {
		return c, fmt.Errorf("parquet: writer: %w", errors.Join(faults...))
	}
	return c, nil
}

// Writer writes batches of one schema to a Parquet file, one row group each. Not
// safe for concurrent use. It holds the encoded columns of one row group at most,
// and of those no more than Concurrency and one that wait for their turn.
type Writer struct {
	config   WriterConfig
	schema   *arrow.Schema
	tree     *tree
	roots    []*node // by leaf
	columns  []int   // by leaf, the column of the batch
	out      *countingWriter
	footer   format.FileMetaData
	encoders []*columnEncoder
	bodies   sync.Pool // of *[]byte
	indexes  []*encodedChunk
	err      error
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return n, err
}

// NewWriter starts a file with the default configuration.
func NewWriter(w io.Writer, schema *arrow.Schema) (*Writer, error) {
	return WriterConfig{}.NewWriter(w, schema)
}

// NewWriter starts a file; nothing is written before the first batch or Close. It
// fails with an *UnsupportedError if a column of the schema cannot be stored, and
// names every fault of the configuration.
func (c WriterConfig) NewWriter(w io.Writer, schema *arrow.Schema) (*Writer, error) {
	c, err := c.check()
	if err != nil {
		return nil, err
	}
	t, err := planWrite(schema)
	if err != nil {
		return nil, err
	}
	encoded, err := encodeSchema(schema)
	if err != nil {
		return nil, err
	}
	out := &Writer{config: c, schema: schema, tree: t, out: &countingWriter{w: w}}
	for i, root := range t.roots {
		for range root.pastLeafs - root.firstLeaf {
			out.roots, out.columns = append(out.roots, root), append(out.columns, i)
		}
	}
	out.footer = format.FileMetaData{Version: 2, Schema: t.elements(), CreatedBy: "stokehold version 1.0.0 (build 1)"}
	for range t.leaves {
		out.footer.ColumnOrders = append(out.footer.ColumnOrders, format.ColumnOrder{Value: new(format.TypeDefinedOrder)})
	}
	// Other readers take the schema's metadata from the file's own.
	md := schema.Metadata()
	for i, key := range md.Keys() {
		if v := md.Values()[i]; key != schemaKey && utf8.ValidString(key) && utf8.ValidString(v) {
			out.footer.KeyValueMetadata = append(out.footer.KeyValueMetadata, format.KeyValue{Key: key, Value: v})
		}
	}
	out.footer.KeyValueMetadata = append(out.footer.KeyValueMetadata, format.KeyValue{Key: schemaKey, Value: encoded})
	for range min(c.Concurrency, len(t.leaves)) {
		out.encoders = append(out.encoders, newColumnEncoder(c))
	}
	out.bodies.New = func() any { return new([]byte) }
	return out, nil
}

// encodeSchema returns the schema as Arrow implementations store it.
func encodeSchema(schema *arrow.Schema) (text string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &UnsupportedError{"", schema.String(), fmt.Sprintf("the Arrow format has no such schema: %v", p)}
		}
	}()
	return base64.StdEncoding.EncodeToString(arrowio.EncodeSchema(schema)), nil
}

// Write is WriteContext with a context that is never done.
func (w *Writer) Write(batch arrow.RecordBatch) error {
	return w.WriteContext(context.Background(), batch)
}

// WriteContext appends the batch as a row group, or as several where RowGroupRows
// says so. A batch without rows leaves no trace. It fails with a *ValueError if a
// value has no place in Parquet. After an error, and after the context is done, the
// file is unusable: its footer is never written, so that no reader takes it for a
// whole one.
func (w *Writer) WriteContext(ctx context.Context, batch arrow.RecordBatch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("parquet: write: the batch is not valid: %v", p)
		}
		if err != nil && w.err == nil {
			w.err = err
		}
	}()
	if w.err != nil {
		return w.err
	}
	if !batch.Schema().Equal(w.schema) {
		return fmt.Errorf("parquet: write batch of schema %s to a file of schema %s: the schemas differ",
			arrowio.Fingerprint(batch.Schema()), arrowio.Fingerprint(w.schema))
	}
	step := w.config.RowGroupRows
	if step == 0 || step > batch.NumRows() {
		step = max(batch.NumRows(), 1)
	}
	for at := int64(0); at < batch.NumRows(); at += step {
		part := batch.NewSlice(at, min(at+step, batch.NumRows()))
		err := w.rowGroup(ctx, part)
		part.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

// rowGroup encodes columns side by side and writes them in their order.
func (w *Writer) rowGroup(ctx context.Context, batch arrow.RecordBatch) error {
	if w.out.n == 0 {
		if _, err := io.WriteString(w.out, magic); err != nil {
			return fmt.Errorf("parquet: write: %w", err)
		}
	}
	group := format.RowGroup{NumRows: batch.NumRows(), FileOffset: w.out.n, Ordinal: int16(min(len(w.footer.RowGroups), math.MaxInt16))}
	group.Columns = make([]format.ColumnChunk, 0, len(w.tree.leaves))
	for _, c := range batch.Columns() {
		countNulls(c)
	}
	work, ctx := errgroup.WithContext(ctx)
	free := make(chan *columnEncoder, len(w.encoders))
	for _, e := range w.encoders {
		free <- e
	}
	done := make([]chan *encodedChunk, len(w.tree.leaves))
	for i := range done {
		done[i] = make(chan *encodedChunk, 1)
	}
	// A column waits for an encoder, and for the one before it by that many to be
	// written.
	ahead := make(chan struct{}, len(w.encoders)+1)
	work.Go(func() error {
		for i, leaf := range w.tree.leaves {
			var e *columnEncoder
			select {
			case ahead <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			select {
			case e = <-free:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			work.Go(func() error {
				defer func() { free <- e }()
				chunk, err := w.encode(e, batch, i, leaf)
				if err != nil {
					return err
				}
				done[i] <- chunk
				return nil
			})
		}
		return nil
	})
	work.Go(func() error {
		for _, d := range done {
			select {
			case chunk := <-d:
				<-ahead
				if err := w.write(&group, chunk); err != nil {
					return err
				}
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	if err := work.Wait(); err != nil {
		return err
	}
	w.footer.NumRows += group.NumRows
	w.footer.RowGroups = append(w.footer.RowGroups, group)
	return nil
}

func (w *Writer) encode(e *columnEncoder, batch arrow.RecordBatch, i int, leaf *node) (chunk *encodedChunk, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("parquet: write column %q: the batch is not valid: %v", leaf.name(), p)
		}
	}()
	body := w.bodies.Get().(*[]byte)
	chunk, err = e.encode(w.roots[i], leaf, batch.Column(w.columns[i]), int(batch.NumRows()), *body)
	var value *ValueError
	if err != nil && !errors.As(err, &value) {
		err = fmt.Errorf("parquet: write column %q: %w", strings.Join(leaf.path, "."), err)
	}
	return chunk, err
}

// write puts a column where the file ends, and its place into the footer.
func (w *Writer) write(group *format.RowGroup, c *encodedChunk) error {
	start := w.out.n
	if _, err := w.out.Write(c.body); err != nil {
		return fmt.Errorf("parquet: write: %w", err)
	}
	body := c.body
	c.body = nil
	w.bodies.Put(&body)
	m := &c.meta
	if m.DictionaryPageOffset != 0 {
		m.DictionaryPageOffset = start
	}
	m.DataPageOffset += start
	m.Statistics = format.Statistics{NullCount: c.nulls, MinValue: c.bounds.min, MaxValue: c.bounds.max}
	for i := range c.pages {
		c.pages[i].offset += start
	}
	group.Columns = append(group.Columns, format.ColumnChunk{FileOffset: start, MetaData: *m})
	group.TotalByteSize += m.TotalUncompressedSize
	group.TotalCompressedSize += m.TotalCompressedSize
	w.indexes = append(w.indexes, c)
	return nil
}

// Close writes the page index and the footer. The underlying writer is the
// caller's to close.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	w.err = ErrClosed
	if err := w.finish(); err != nil {
		return fmt.Errorf("parquet: write footer: %w", err)
	}
	return nil
}

func (w *Writer) finish() error {
	if w.out.n == 0 {
		if _, err := io.WriteString(w.out, magic); err != nil {
			return err
		}
	}
	var protocol thrift.CompactProtocol
	put := func(v any) (int64, int32, error) {
		at := w.out.n
		b, err := thrift.Marshal(&protocol, v)
		if err == nil {
			_, err = w.out.Write(b)
		}
		return at, int32(len(b)), err
	}
	next := 0
	for g := range w.footer.RowGroups {
		for i := range w.footer.RowGroups[g].Columns {
			c := w.indexes[next]
			next++
			if !c.indexed {
				continue
			}
			column := &w.footer.RowGroups[g].Columns[i]
			var err error
			if column.ColumnIndexOffset, column.ColumnIndexLength, err = put(c.columnIndex()); err != nil {
				return err
			}
		}
	}
	next = 0
	for g := range w.footer.RowGroups {
		for i := range w.footer.RowGroups[g].Columns {
			column := &w.footer.RowGroups[g].Columns[i]
			var err error
			if column.OffsetIndexOffset, column.OffsetIndexLength, err = put(w.indexes[next].offsetIndex()); err != nil {
				return err
			}
			next++
		}
	}
	_, n, err := put(&w.footer)
	if err != nil {
		return err
	}
	_, err = w.out.Write(append(little.AppendUint32(nil, uint32(n)), magic...))
	return err
}

func (c *encodedChunk) columnIndex() *format.ColumnIndex {
	var out format.ColumnIndex
	for _, p := range c.pages {
		out.NullPages = append(out.NullPages, p.allNull)
		out.MinValues = append(out.MinValues, present(p.bounds.min))
		out.MaxValues = append(out.MaxValues, present(p.bounds.max))
		out.NullCounts = append(out.NullCounts, p.nulls)
	}
	return &out
}

func (c *encodedChunk) offsetIndex() *format.OffsetIndex {
	var out format.OffsetIndex
	for _, p := range c.pages {
		out.PageLocations = append(out.PageLocations, format.PageLocation{Offset: p.offset, CompressedPageSize: p.size, FirstRowIndex: p.firstRow})
	}
	return &out
}

// Write writes batches of one schema as a complete file.
func Write(out io.Writer, batches ...arrow.RecordBatch) error {
	if len(batches) == 0 {
		return errors.New("parquet: write: no batch to take the schema from; use NewWriter")
	}
	w, err := NewWriter(out, batches[0].Schema())
	if err != nil {
		return err
	}
	for _, b := range batches {
		if err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Close()
}

func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// countNulls has every array know how many nulls it has. Arrow counts them when it
// is first asked, and columns that are encoded at once may share a parent.
func countNulls(a arrow.Array) {
	a.NullN()
	switch t := a.(type) {
	case *array.Struct:
		for i := range t.NumField() {
			countNulls(t.Field(i))
		}
	case array.ListLike:
		countNulls(t.ListValues())
	case *array.Dictionary:
		countNulls(t.Dictionary())
	case *array.RunEndEncoded:
		countNulls(t.Values())
	case array.ExtensionArray:
		countNulls(t.Storage())
	}
}
