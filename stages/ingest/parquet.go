package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/stokehold/stokehold/arrowio/parquet"
)

func isParquet(r io.ReaderAt, size int64) bool {
	var magic [4]byte
	if size < int64(len(magic)) {
		return false
	}
	_, err := r.ReadAt(magic[:], 0)
	return err == nil && string(magic[:]) == "PAR1"
}

// readParquet reads row group by row group: no more than one is in memory
// besides the wanted columns.
func readParquet(ctx context.Context, r io.ReaderAt, size int64, t *Columns) error {
	f, err := parquet.Open(r, size)
	if err != nil {
		var unsupported *parquet.UnsupportedError
		if errors.As(err, &unsupported) {
			return &Error{File: t.file, Column: unsupported.Column, Err: ErrSchema, Detail: "have " + unsupported.Type}
		}
		return &Error{File: t.file, Err: fmt.Errorf("%w: %w", ErrFormat, err), Detail: "the file may be cut off"}
	}
	if err := t.checkNames(columnNames(f.Schema())); err != nil {
		return err
	}
	if err := t.room(f.NumRows()); err != nil {
		return err
	}
	for rec, err := range f.Batches() {
		if err != nil {
			return &Error{File: t.file, Row: t.rows + 1, Err: fmt.Errorf("%w: %w", ErrFormat, err), Detail: "the file may be damaged"}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.append(rec); err != nil {
			return err
		}
	}
	return nil
}
