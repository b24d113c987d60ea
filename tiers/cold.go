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

// Codecs of the cold tier, as in arrowio.Location.Codec.
const (
	// CodecParquet is small, and what other tools read: one row group a batch.
	CodecParquet = "parquet"
	// CodecArrow is an Arrow IPC stream, as in the warm tier: it holds every type, and
	// goes into shared memory as it comes. It is not compressed.
	CodecArrow = "arrow-ipc"
)

// objectExt is the name of a codec in keys.
func objectExt(codec string) (string, error) {
	switch codec {
	case CodecParquet:
		return ".parquet", nil
	case CodecArrow:
		return ".arrow", nil
	}
	return "", fmt.Errorf("%w: codec %.40q of the cold tier: want %s or %s", arrowio.ErrUnsupported, codec, CodecParquet, CodecArrow)
}

// objectDigest is the digest that a key names; ok is false if it is not that of a
// batch.
func objectDigest(key string) (digest string, ok bool) {
	name := key[strings.LastIndexByte(key, '/')+1:]
	digest, ext, _ := strings.Cut(name, ".")
	return digest, len(digest) == 64 && (ext == "parquet" || ext == "arrow")
}

// coldKey is where a batch's object is: its name is its content, so whoever
// writes the key writes the same bytes.
func coldKey(loc arrowio.Location) (string, error) {
	if len(loc.SHA256) != 64 || strings.Trim(loc.SHA256, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%w: %.80q is not a SHA-256", arrowio.ErrCorrupt, loc.SHA256)
	}
	ext, err := objectExt(loc.Codec)
	return objectPrefix + loc.SHA256[:2] + "/" + loc.SHA256 + ext, err
}

// coldDriver is the object store.
type coldDriver struct{ s *Store }

// Write implements Driver. The store's catalog must own the object store.
func (c coldDriver) Write(ctx context.Context, _ arrowio.Ref, rec arrow.RecordBatch) (arrowio.Location, error) {
	raw, codec, err := encodeCold(rec, c.s.coldCodec)
	if err != nil {
		return arrowio.Location{}, err
	}
	if err := c.s.claimCold(ctx); err != nil {
		return arrowio.Location{}, err
	}
	loc := arrowio.Location{Tier: arrowio.Cold, Bytes: int64(len(raw)), SHA256: digestOf(raw), Codec: codec}
	key, err := coldKey(loc)
	if err != nil {
		return arrowio.Location{}, err
	}
	if err := c.s.cold.Put(ctx, key, raw); err != nil {
		return arrowio.Location{}, err
	}
	loc.URI = c.s.cold.URI(key)
	return loc, nil
}

// Read implements Driver.
func (c coldDriver) Read(ctx context.Context, ref arrowio.Ref, loc arrowio.Location) (arrow.RecordBatch, error) {
	return c.s.readCold(ctx, ref, loc)
}

// Remove implements Driver.
func (c coldDriver) Remove(ctx context.Context, _ arrowio.Ref, loc arrowio.Location) error {
	key, err := coldKey(loc)
	if err != nil {
		return err
	}
	if err := c.s.ownCold(ctx, true); err != nil {
		return err
	}
	if err := c.s.cold.Delete(ctx, key); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	return nil
}

// encodeCold makes the object of a batch: of that codec, and as Arrow IPC if Parquet
// has no place for its types or values.
func encodeCold(rec arrow.RecordBatch, codec string) (raw []byte, as string, err error) {
	if codec == CodecParquet {
		raw, err = toParquet(rec)
		switch {
		case err == nil:
			return raw, CodecParquet, nil
		case !errors.Is(err, parquet.ErrUnsupported) && !errors.Is(err, parquet.ErrValue):
			return nil, "", fmt.Errorf("encode as Parquet: %w", err)
		}
	}
	if raw, err = arrowio.Encode(rec, nil); err != nil {
		return nil, "", fmt.Errorf("encode as Arrow IPC: %w", err)
	}
	return raw, CodecArrow, nil
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

// openParquet opens an object of one batch.
func openParquet(raw []byte) (*parquet.File, error) {
	f, err := parquet.Open(parquet.Bytes(raw), int64(len(raw)))
	if err != nil {
		return nil, err
	}
	if n := f.RowGroups(); n > 1 {
		return nil, fmt.Errorf("%w: %d row groups where one batch is one", arrowio.ErrCorrupt, n)
	}
	return f, nil
}

// decodeParquet decodes the batch, which is not part of the object's memory.
func decodeParquet(f *parquet.File, allocate func(int) []byte) (arrow.RecordBatch, error) {
	var rec arrow.RecordBatch
	for r, err := range f.Scan(context.Background(), parquet.ScanOptions{Allocate: allocate}) { // one without rows has no row group, but a schema
		if err != nil {
			return nil, err
		}
		r.Retain()
		rec = r
	}
	return rec, nil
}
