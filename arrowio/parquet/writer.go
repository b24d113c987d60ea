package parquet

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	pq "github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/stokehold/stokehold/arrowio"
)

// chunkRows is how many values go to the encoder at once: their temporary
// 24-byte form stays in the processor's cache.
const chunkRows = 1024

// Writer writes batches of one schema to a Parquet file, one row group each. Not
// safe for concurrent use.
type Writer struct {
	schema *arrow.Schema
	w      *pq.GenericWriter[any]
	values []pq.Value
	err    error
}

// NewWriter starts a file. It fails with an *UnsupportedError if a column of the
// schema cannot be stored.
func NewWriter(w io.Writer, schema *arrow.Schema) (*Writer, error) {
	root, err := toParquet(schema)
	if err != nil {
		return nil, err
	}
	options := []pq.WriterOption{
		root,
		// Batches are written once and read often: the fastest level loses little
		// on numeric columns.
		pq.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		pq.DataPageStatistics(true),
		pq.DictionaryMaxBytes(1 << 20),
		pq.CreatedBy("stokehold", "1", ""),
	}
	// Other readers take the schema's metadata from the file's own.
	md := schema.Metadata()
	for i, key := range md.Keys() {
		options = append(options, pq.KeyValueMetadata(key, md.Values()[i]))
	}
	options = append(options, pq.KeyValueMetadata(schemaKey, base64.StdEncoding.EncodeToString(arrowio.EncodeSchema(schema))))
	return &Writer{schema: schema, values: make([]pq.Value, chunkRows), w: pq.NewGenericWriter[any](w, options...)}, nil
}

// Write appends the batch as a row group. A batch without rows leaves no trace.
// After an error the file is unusable.
func (w *Writer) Write(batch arrow.RecordBatch) (err error) {
	defer guard("write", &err)
	if w.err != nil {
		return w.err
	}
	defer func() { w.err = err }()
	if !batch.Schema().Equal(w.schema) {
		return fmt.Errorf("parquet: write batch of schema %s to a file of schema %s: the schemas differ",
			arrowio.Fingerprint(batch.Schema()), arrowio.Fingerprint(w.schema))
	}
	cols := w.w.ColumnWriters()
	for i, col := range batch.Columns() {
		if err := w.column(cols[i], i, col, w.schema.Field(i)); err != nil {
			return fmt.Errorf("parquet: write column %q: %w", w.schema.Field(i).Name, err)
		}
	}
	if err := w.w.Flush(); err != nil {
		return fmt.Errorf("parquet: write row group of %d rows: %w", batch.NumRows(), err)
	}
	return nil
}

// Close writes the footer. The underlying writer is the caller's to close.
func (w *Writer) Close() (err error) {
	defer guard("close", &err)
	if w.err != nil {
		return w.err
	}
	w.err = errors.New("parquet: writer is closed")
	if err := w.w.Close(); err != nil {
		return fmt.Errorf("parquet: write footer: %w", err)
	}
	return nil
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

func (w *Writer) column(out *pq.ColumnWriter, index int, col arrow.Array, f arrow.Field) error {
	value, err := valueOf(col)
	if err != nil {
		return err
	}
	level := 0
	if f.Nullable {
		level = 1
	} else if n := col.NullN(); n > 0 {
		return fmt.Errorf("%d nulls in a column that is not nullable", n)
	}
	null := pq.NullValue().Level(0, 0, index)
	for at := 0; at < col.Len(); at += chunkRows {
		chunk := w.values[:min(chunkRows, col.Len()-at)]
		for i := range chunk {
			if col.IsNull(at + i) {
				chunk[i] = null
			} else {
				chunk[i] = value(at+i).Level(0, level, index)
			}
		}
		if _, err := out.WriteRowValues(chunk); err != nil {
			return err
		}
	}
	return nil
}

// valueOf returns the Parquet value at a row that is not null.
func valueOf(col arrow.Array) (func(int) pq.Value, error) {
	switch c := col.(type) {
	case *array.Boolean:
		return func(i int) pq.Value { return pq.BooleanValue(c.Value(i)) }, nil
	case *array.Int8:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Int16:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Int32:
		return func(i int) pq.Value { return pq.Int32Value(c.Value(i)) }, nil
	case *array.Int64:
		return func(i int) pq.Value { return pq.Int64Value(c.Value(i)) }, nil
	case *array.Uint8:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Uint16:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Uint32:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Uint64:
		return func(i int) pq.Value { return pq.Int64Value(int64(c.Value(i))) }, nil
	case *array.Float32:
		return func(i int) pq.Value { return pq.FloatValue(c.Value(i)) }, nil
	case *array.Float64:
		return func(i int) pq.Value { return pq.DoubleValue(c.Value(i)) }, nil
	case *array.Date32:
		return func(i int) pq.Value { return pq.Int32Value(int32(c.Value(i))) }, nil
	case *array.Timestamp:
		return func(i int) pq.Value { return pq.Int64Value(int64(c.Value(i))) }, nil
	case *array.String:
		return func(i int) pq.Value { return pq.ByteArrayValue(bytesOf(c.Value(i))) }, nil
	case *array.LargeString:
		return func(i int) pq.Value { return pq.ByteArrayValue(bytesOf(c.Value(i))) }, nil
	case *array.Binary:
		return func(i int) pq.Value { return pq.ByteArrayValue(c.Value(i)) }, nil
	case *array.LargeBinary:
		return func(i int) pq.Value { return pq.ByteArrayValue(c.Value(i)) }, nil
	case *array.Dictionary:
		inner, err := valueOf(c.Dictionary())
		return func(i int) pq.Value { return inner(c.GetValueIndex(i)) }, err
	}
	return nil, fmt.Errorf("%w %s", ErrUnsupported, col.DataType())
}
