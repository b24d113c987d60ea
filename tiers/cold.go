package tiers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/parquet"
)

// coldKey is where a batch's object is: its name is its content, so whoever
// writes the key writes the same bytes.
func coldKey(digest string) string {
	return "batches/sha256/" + digest[:2] + "/" + digest + ".parquet"
}

// openCold gets a batch's object, verifies its hash and decodes it.
func (s *Store) openCold(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (*Batch, error) {
	rec, err := s.fetchCold(ctx, loc)
	if err != nil {
		return nil, err
	}
	return s.checked(&Batch{Ref: ref, Record: rec, Tier: arrowio.Cold})
}

func (s *Store) fetchCold(ctx context.Context, loc arrowio.Location) (arrow.RecordBatch, error) {
	if s.cold == nil {
		return nil, fmt.Errorf("%w: this store has no cold tier, the batch is at %s", arrowio.ErrGone, loc.URI)
	}
	if len(loc.SHA256) != 64 || strings.Trim(loc.SHA256, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %.80q is not a SHA-256", arrowio.ErrCorrupt, loc.SHA256)
	}
	raw, err := s.cold.Get(ctx, coldKey(loc.SHA256))
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", arrowio.ErrGone, err)
	}
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != loc.SHA256 {
		return nil, fmt.Errorf("%w: SHA-256 of %s is %s, %s expected", arrowio.ErrCorrupt, loc.URI, got, loc.SHA256)
	}
	return fromParquet(raw)
}

func toParquet(rec arrow.RecordBatch) ([]byte, error) {
	var b bytes.Buffer
	w, err := parquet.NewWriter(&b, rec.Schema())
	if err != nil {
		return nil, err
	}
	if err := w.Write(rec); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fromParquet decodes an object of one batch.
func fromParquet(raw []byte) (arrow.RecordBatch, error) {
	f, err := parquet.Open(parquet.Bytes(raw), int64(len(raw)))
	if err != nil {
		return nil, err
	}
	if n := f.RowGroups(); n > 1 {
		return nil, fmt.Errorf("%w: %d row groups where one batch is one", arrowio.ErrCorrupt, n)
	}
	var rec arrow.RecordBatch
	for r, err := range f.Batches() { // one without rows has no row group, but a schema
		if err != nil {
			return nil, err
		}
		r.Retain()
		rec = r
	}
	return rec, nil
}
