// Package ingest brings data files (Parquet or CSV) into datasets, one batch per
// key: a week, a day, a partition. A file is read and checked as a whole before
// the first batch is written, so that a wrong file leaves nothing behind.
package ingest

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/stages"
)

// Sentinels for the decisions a caller makes. All are wrapped in *Error and
// marked permanent by Stage.
var (
	// ErrSchema means: a column is missing or of a type that cannot become the wanted one.
	ErrSchema = errors.New("wrong schema")
	// ErrFormat means: not a Parquet or CSV file, or cut off.
	ErrFormat = errors.New("not a readable Parquet or CSV file")
	// ErrValue means: a value is missing, unreadable or outside the range of keys.
	ErrValue = errors.New("bad value")
	// ErrLimit means: the file is larger than the source's limits.
	ErrLimit = errors.New("file too large")
)

// Error says which file is wrong, where and how.
type Error struct {
	File   string
	Column string // "" when not about one column
	Row    int64  // 1-based data row; 0 when not about one row
	Detail string
	Err    error // wraps one of the sentinels
}

func (e *Error) Error() string {
	s := e.File
	if e.Row > 0 {
		s += fmt.Sprintf(" row %d", e.Row)
	}
	if e.Column != "" {
		s += fmt.Sprintf(" column %q", e.Column)
	}
	s += ": " + e.Err.Error()
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Stage writes the batches from..to-1 of Source to its output dataset, each at
// the sequence that is its key. Batches that the dataset has already are kept.
type Stage struct {
	Source *Source
	// Columns to write, in this order; empty: all of the source's.
	Columns []string
	// Metadata of the written schema; nil: none.
	Metadata map[string]string
	// Window says which keys this run writes; nil: the parameters "from" and "to"
	// (exclusive; 0: the end of the source).
	Window func(*stages.Task) (from, to uint64, err error)
}

// Schema is that of the batches written.
func (s *Stage) Schema() *arrow.Schema {
	wanted := s.Source.cfg.Schema
	names := s.Columns
	if len(names) == 0 {
		names = columnNames(wanted)
	}
	fields := make([]arrow.Field, 0, len(names))
	for _, n := range names {
		for _, f := range wanted.Fields() {
			if f.Name == n {
				fields = append(fields, f)
			}
		}
	}
	var md *arrow.Metadata
	if len(s.Metadata) > 0 {
		m := arrow.MetadataFrom(s.Metadata)
		md = &m
	}
	return arrow.NewSchema(fields, md)
}

// Run implements stages.Stage.
func (s *Stage) Run(ctx context.Context, task *stages.Task) error {
	window := s.Window
	if window == nil {
		window = fromTo
	}
	from, to, err := window(task)
	if err != nil {
		return err
	}
	n, err := s.Source.Len(ctx)
	if err != nil {
		return permanent(err)
	}
	if to == 0 {
		to = n
	}
	if from > to || to > n {
		return stages.Permanent(&Error{File: s.Source.cfg.Name, Err: ErrValue, Detail: fmt.Sprintf("batches %d to %d were asked for, the file has 0 to %d", from, to, n)})
	}
	schema := s.Schema()
	task.Progress(0, int64(to-from), "")
	for key := from; key < to; key++ {
		if err := s.write(ctx, task, schema, key); err != nil {
			return err
		}
		task.Progress(int64(key-from)+1, int64(to-from), "")
	}
	return nil
}

func (s *Stage) write(ctx context.Context, task *stages.Task, schema *arrow.Schema, key uint64) error {
	sp, err := s.Source.find(ctx, key)
	if err != nil {
		return permanent(err)
	}
	rows := sp.rowsOf(key)
	build, err := task.Build(ctx, schema, sp.table.bytes(schema, rows))
	if err != nil {
		return err
	}
	defer build.Cancel()
	rec := sp.table.build(build.Allocator(), schema, rows)
	defer rec.Release()
	_, err = task.WriteBuiltAt(ctx, key, build, rec)
	return err
}

// permanent marks what is wrong with the file itself: no retry mends it.
func permanent(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return stages.Permanent(err)
	}
	return err
}

func fromTo(task *stages.Task) (uint64, uint64, error) {
	var p struct{ From, To uint64 }
	err := task.Decode(&p)
	return p.From, p.To, err
}

func columnNames(s *arrow.Schema) []string {
	names := make([]string, s.NumFields())
	for i, f := range s.Fields() {
		names[i] = f.Name
	}
	return names
}
