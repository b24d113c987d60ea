package parquet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/parquet-go/parquet-go/format"
	"github.com/pierrec/lz4/v4"
)

// Compression is how a writer compresses pages.
type Compression uint8

// What a writer can compress with. A reader reads GZIP, BROTLI and LZ4_RAW, too.
const (
	// Zstd is the default, at its fastest level: files are written once and read
	// often, and slower levels gain little on numbers.
	Zstd Compression = iota
	Snappy
	Uncompressed
)

func (c Compression) codec() format.CompressionCodec {
	switch c {
	case Zstd:
		return format.Zstd
	case Snappy:
		return format.Snappy
	default:
		return format.Uncompressed
	}
}

// compressor appends compressed pages. Not safe for concurrent use.
type compressor struct {
	kind Compression
	zstd *zstd.Encoder
	tmp  []byte
}

func (c *compressor) append(dst, src []byte) ([]byte, error) {
	switch c.kind {
	case Zstd:
		if c.zstd == nil {
			e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithZeroFrames(true), zstd.WithEncoderCRC(false))
			if err != nil {
				return nil, err
			}
			c.zstd = e
		}
		return c.zstd.EncodeAll(src, dst), nil
	case Snappy:
		c.tmp = snappy.Encode(c.tmp[:cap(c.tmp)], src)
		return append(dst, c.tmp...), nil
	default:
		return append(dst, src...), nil
	}
}

// zstdDecoders are shared by all readers. A decoder never writes past the capacity
// of its output, however much a page would expand to.
var zstdDecoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(64<<20))
	if err != nil {
		return err
	}
	return d
}}

var gzipReaders sync.Pool

// decompress fills dst, whose length is what the page's header promises, and fails
// if the page is of any other size. It never writes more than that.
func decompress(codec format.CompressionCodec, dst, src []byte) error {
	n := 0
	switch codec {
	case format.Snappy:
		size, err := snappy.DecodedLen(src)
		if err != nil {
			return err
		}
		if size != len(dst) {
			return wrongSize(size, len(dst))
		}
		if _, err := snappy.Decode(dst, src); err != nil {
			return err
		}
		n = size
	case format.Zstd:
		d, ok := zstdDecoders.Get().(*zstd.Decoder)
		if !ok {
			return errors.New("no zstd decoder")
		}
		out, err := d.DecodeAll(src, dst[:0:len(dst)])
		zstdDecoders.Put(d)
		if err != nil {
			return err
		}
		n = len(out)
	case format.Gzip:
		r, _ := gzipReaders.Get().(*gzip.Reader)
		var err error
		if r == nil {
			r, err = gzip.NewReader(bytes.NewReader(src))
		} else {
			err = r.Reset(bytes.NewReader(src))
		}
		if err != nil {
			return err
		}
		err = exactly(r, dst)
		gzipReaders.Put(r)
		return err
	case format.Brotli:
		return exactly(brotli.NewReader(bytes.NewReader(src)), dst)
	case format.Lz4Raw:
		var err error
		if len(dst) == 0 {
			return nil
		}
		if n, err = lz4.UncompressBlock(src, dst); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: compression %v", ErrUnsupported, codec)
	}
	if n != len(dst) {
		return wrongSize(n, len(dst))
	}
	return nil
}

func wrongSize(n, want int) error {
	return fmt.Errorf("page decompresses to %d bytes, its header says %d", n, want)
}

// exactly reads len(dst) bytes from r, which must have no more.
func exactly(r io.Reader, dst []byte) error {
	n, err := io.ReadFull(r, dst)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			return wrongSize(n, len(dst))
		}
		return err
	}
	var more [1]byte
	if n, err := io.ReadFull(r, more[:]); n != 0 || !errors.Is(err, io.EOF) {
		return wrongSize(len(dst)+n, len(dst))
	}
	return nil
}
