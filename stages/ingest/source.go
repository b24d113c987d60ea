package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// DefaultMaxRows bounds a source's rows, and with them its memory: about 60
// bytes a row for five columns.
const DefaultMaxRows = 20_000_000

// DefaultMaxBytes bounds the size of a source's file.
const DefaultMaxBytes = 4 << 30

// Config describes a data file. Path or Data is required, and Schema and Key.
type Config struct {
	Path string // file on disk
	Data []byte // content, when Path is empty; must not change
	Name string // for messages; default: the file's base name
	// Schema names the wanted columns and their types: timestamp[us], int64,
	// float64 or string. The file may have others, in any order; narrower integers,
	// other time units and dictionaries are converted. No value may be null.
	Schema   *arrow.Schema
	Key      Key
	MaxRows  int64 // default DefaultMaxRows
	MaxBytes int64 // default DefaultMaxBytes
}

// Key says to which batch each row belongs.
type Key interface {
	// Keys returns the key of each row and the number of batches. Every key below
	// that number must have a row.
	Keys(t *Columns) (keys []uint64, n uint64, err error)
}

// Source is a data file, read once on first use and then held in memory, so that
// many small stages may read it: batches are built from it where they are wanted.
// It is read again when the file on disk has changed. Safe for concurrent use.
type Source struct {
	cfg Config

	mu     sync.Mutex
	loaded *split
	stamp  fileStamp
}

type fileStamp struct {
	size int64
	mod  time.Time
}

// split is a file's columns and which of their rows make each batch.
type split struct {
	table *Columns
	order []int // rows by batch, those of a batch in the file's order
	start []int // where in order each batch begins, and the end
	sum   string
	first []time.Time // of the first timestamp column, per batch: its least value
}

func (sp *split) batches() uint64 { return uint64(len(sp.start) - 1) }

func (sp *split) rowsOf(key uint64) []int { return sp.order[sp.start[key]:sp.start[key+1]] }

// NewSource checks cfg and reads nothing.
func NewSource(cfg Config) (*Source, error) {
	var faults []error
	if cfg.Path == "" && len(cfg.Data) == 0 {
		faults = append(faults, errors.New("ingest: source has neither Path nor Data"))
	}
	if cfg.Key == nil {
		faults = append(faults, errors.New("ingest: source has no Key"))
	}
	if cfg.Schema == nil || cfg.Schema.NumFields() == 0 {
		faults = append(faults, errors.New("ingest: source has no Schema"))
	} else {
		for _, f := range cfg.Schema.Fields() {
			if kindOf(f.Type) == kindNone {
				faults = append(faults, fmt.Errorf("ingest: column %q: wanted type %s is not one of timestamp[us], int64, float64, string", f.Name, f.Type))
			}
		}
	}
	if cfg.Name == "" && cfg.Path != "" {
		cfg.Name = filepath.Base(cfg.Path)
	}
	if cfg.MaxRows == 0 {
		cfg.MaxRows = DefaultMaxRows
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return &Source{cfg: cfg}, nil
}

// Name is the source's name for people.
func (s *Source) Name() string { return s.cfg.Name }

// Len is the number of batches; it reads the file if that has not been done.
func (s *Source) Len(ctx context.Context) (uint64, error) {
	sp, err := s.load(ctx)
	if err != nil {
		return 0, err
	}
	return sp.batches(), nil
}

// Rows is the number of rows.
func (s *Source) Rows(ctx context.Context) (int64, error) {
	sp, err := s.load(ctx)
	if err != nil {
		return 0, err
	}
	return sp.table.rows, nil
}

// SHA256 is the hex digest of the file.
func (s *Source) SHA256(ctx context.Context) (string, error) {
	sp, err := s.load(ctx)
	if err != nil {
		return "", err
	}
	return sp.sum, nil
}

// Batch builds the batch of that key with all wanted columns; release it.
func (s *Source) Batch(ctx context.Context, key uint64) (arrow.RecordBatch, error) {
	sp, err := s.find(ctx, key)
	if err != nil {
		return nil, err
	}
	return sp.table.build(memory.DefaultAllocator, s.cfg.Schema, sp.rowsOf(key)), nil
}

// Count is the number of rows of the batch of that key.
func (s *Source) Count(ctx context.Context, key uint64) (int64, error) {
	sp, err := s.find(ctx, key)
	if err != nil {
		return 0, err
	}
	return int64(len(sp.rowsOf(key))), nil
}

func (s *Source) find(ctx context.Context, key uint64) (*split, error) {
	sp, err := s.load(ctx)
	if err != nil {
		return nil, err
	}
	if key >= sp.batches() {
		return nil, &Error{File: s.cfg.Name, Err: ErrValue, Detail: fmt.Sprintf("no batch %d, only %d", key, sp.batches())}
	}
	return sp, nil
}

// Start is the earliest value of the first timestamp column in batch key.
func (s *Source) Start(ctx context.Context, key uint64) (time.Time, error) {
	sp, err := s.load(ctx)
	if err != nil {
		return time.Time{}, err
	}
	if key >= uint64(len(sp.first)) {
		return time.Time{}, &Error{File: s.cfg.Name, Err: ErrValue, Detail: "no such batch or no timestamp column"}
	}
	return sp.first[key], nil
}

// load reads the file under the lock: callers that come meanwhile wait for the
// one read instead of each holding a copy.
func (s *Source) load(ctx context.Context) (*split, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := fileStamp{size: int64(len(s.cfg.Data))}
	if s.cfg.Path != "" {
		info, err := os.Stat(s.cfg.Path)
		if err != nil {
			return nil, s.unreadable(err)
		}
		if !info.Mode().IsRegular() {
			return nil, &Error{File: s.cfg.Path, Err: ErrFormat, Detail: "not a regular file"}
		}
		stamp = fileStamp{info.Size(), info.ModTime()}
	}
	if s.loaded != nil && s.stamp == stamp {
		return s.loaded, nil
	}
	sp, err := s.read(ctx, stamp.size)
	if err != nil {
		return nil, err
	}
	s.loaded, s.stamp = sp, stamp
	return sp, nil
}

// unreadable is the error of a file that the system does not give, whose path it
// names once.
func (s *Source) unreadable(err error) error {
	if at := (*fs.PathError)(nil); errors.As(err, &at) {
		err = at.Err
	}
	return &Error{File: s.cfg.Path, Err: fmt.Errorf("%w: %w", ErrFormat, err), Detail: "check the path and its permissions"}
}

func (s *Source) read(ctx context.Context, size int64) (*split, error) {
	if size > s.cfg.MaxBytes {
		return nil, &Error{File: s.cfg.Name, Err: ErrLimit, Detail: fmt.Sprintf("%d bytes, at most %d", size, s.cfg.MaxBytes)}
	}
	var content interface {
		io.ReaderAt
		io.Reader
		io.Seeker
	} = bytes.NewReader(s.cfg.Data)
	if s.cfg.Path != "" {
		f, err := os.Open(s.cfg.Path)
		if err != nil {
			return nil, s.unreadable(err)
		}
		defer func() { _ = f.Close() }() // it was only read
		content = f
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(content, 0, size)); err != nil {
		return nil, &Error{File: s.cfg.Name, Err: fmt.Errorf("%w: %w", ErrFormat, err)}
	}
	table := newColumns(s.cfg.Name, s.cfg.Schema, s.cfg.MaxRows)
	var err error
	if isParquet(content, size) {
		err = readParquet(ctx, content, size, table)
	} else {
		err = readCSV(ctx, io.NewSectionReader(content, 0, size), table)
	}
	if err != nil {
		return nil, err
	}
	if table.rows == 0 {
		return nil, &Error{File: s.cfg.Name, Err: ErrFormat, Detail: "no rows"}
	}
	keys, n, err := s.cfg.Key.Keys(table)
	if err != nil {
		return nil, err
	}
	sp, err := table.split(keys, n)
	if err != nil {
		return nil, err
	}
	sp.sum = hex.EncodeToString(sum.Sum(nil))
	table.intern = nil // it served the reading
	return sp, nil
}

// ByTime groups rows by fixed spans of a timestamp column, counted from midnight
// of the earliest row's day.
type ByTime struct {
	Column string
	Width  time.Duration
	Max    uint64 // at most this many spans; default 10,000
}

// Keys implements Key.
func (k ByTime) Keys(t *Columns) ([]uint64, uint64, error) {
	col, err := t.times(k.Column)
	if err != nil {
		return nil, 0, err
	}
	limit := k.Max
	if limit == 0 {
		limit = 10_000
	}
	least := col[0]
	for _, v := range col {
		least = min(least, v)
	}
	day := int64(24 * time.Hour / time.Microsecond)
	origin := least - mod(least, day)
	width := int64(k.Width / time.Microsecond)
	keys := make([]uint64, len(col))
	var n uint64
	for i, v := range col {
		key := uint64((v - origin) / width)
		if key >= limit {
			return nil, 0, &Error{File: t.file, Column: k.Column, Row: int64(i) + 1, Err: ErrLimit,
				Detail: fmt.Sprintf("%s is more than %d spans of %s after the first row", time.UnixMicro(v).UTC().Format(time.DateTime), limit, k.Width)}
		}
		keys[i] = key
		n = max(n, key+1)
	}
	return keys, n, nil
}

func mod(a, b int64) int64 { return ((a % b) + b) % b }
