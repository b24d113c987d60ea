package arrowio

import (
	"sync"

	"github.com/apache/arrow-go/v18/arrow"
)

// maxDecoders bounds how many streams a Decoders remembers. A schema is a few
// KiB, so that all of them are less than one batch.
const maxDecoders = 128

// Decoders is a Decoder for each of the streams that are being read: datasets,
// say, whose batches all have one schema. It forgets some when there are many,
// which costs their next batch a look at its schema. The zero value is ready.
// Safe for concurrent use.
type Decoders struct {
	mu sync.Mutex
	of map[string]*Decoder
}

// For returns the Decoder of a stream.
func (ds *Decoders) For(stream string) *Decoder {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d := ds.of[stream]
	if d != nil {
		return d
	}
	if ds.of == nil {
		ds.of = map[string]*Decoder{}
	}
	for name := range ds.of {
		if len(ds.of) < maxDecoders {
			break
		}
		delete(ds.of, name)
	}
	d = &Decoder{}
	ds.of[stream] = d
	return d
}

// Fingerprint is the function Fingerprint; that of the schema of the last frame
// is worked out once.
func (d *Decoder) Fingerprint(schema *arrow.Schema) string {
	k := d.last.Load()
	if k == nil || k.schema != schema {
		return Fingerprint(schema)
	}
	k.named.Do(func() { k.fingerprint = Fingerprint(schema) })
	return k.fingerprint
}
