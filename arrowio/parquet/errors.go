package parquet

import (
	"errors"
	"fmt"

	"github.com/stokehold/stokehold/arrowio"
)

var (
	// ErrUnsupported means: a column's type has no mapping here. Always within an
	// *UnsupportedError.
	ErrUnsupported = errors.New("unsupported column type")
	// ErrValue means: a value has no place in the column's Parquet type. Always
	// within a *ValueError.
	ErrValue = errors.New("value cannot be stored")
	// ErrLimit means: a batch would take more memory than the reader may use. Always
	// within a *LimitError.
	ErrLimit = errors.New("over the memory limit")
	// ErrColumn means: a projection or predicate names a column that the file does
	// not have, or compares it with what it cannot be compared with.
	ErrColumn = errors.New("no such column")
	// ErrClosed means: the writer was closed.
	ErrClosed = errors.New("parquet: writer is closed")
)

// UnsupportedError names the column that cannot be written or read.
type UnsupportedError struct {
	Column string // path of names from the top, joined by dots
	Type   string // Arrow or Parquet type
	Hint   string // what to do
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("parquet: column %q: %v %s: %s", e.Column, ErrUnsupported, e.Type, e.Hint)
}

func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

// ValueError names a value that its column's Parquet type does not hold, though
// Arrow's does: a negative interval, or seconds that overflow as milliseconds.
type ValueError struct {
	Column string
	Type   string // Arrow type
	Index  int64  // of the value among those of the column that are not null
	Hint   string // what is wrong with it and what to do
}

func (e *ValueError) Error() string {
	return fmt.Sprintf("parquet: column %q of type %s, value %d: %v: %s", e.Column, e.Type, e.Index, ErrValue, e.Hint)
}

func (e *ValueError) Unwrap() error { return ErrValue }

// LimitError says that what a file asks for is over ScanOptions.MaxBytes.
type LimitError struct {
	Column string
	Bytes  int64 // asked for, at least
	Limit  int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("parquet: column %q: batch of at least %d bytes: %v of %d bytes: read fewer rows or columns at once, or raise MaxBytes",
		e.Column, e.Bytes, ErrLimit, e.Limit)
}

func (e *LimitError) Unwrap() error { return ErrLimit }

// guard turns a panic on what was read into an error: a file must not be able to
// end the process, whatever was overlooked.
func guard(op string, err *error) {
	if p := recover(); p != nil {
		*err = corrupt("%s: malformed: %v", op, p)
	}
}

func corrupt(f string, args ...any) error {
	return fmt.Errorf("parquet: %w: "+f, append([]any{arrowio.ErrCorrupt}, args...)...)
}
