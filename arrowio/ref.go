package arrowio

import (
	"errors"
	"fmt"
)

// Tier is a storage class, named by distance from the accelerator.
type Tier string

// The tiers, nearest first.
const (
	Hot  Tier = "hot"  // shared memory, or another host that gives it out
	Warm Tier = "warm" // local disk, Arrow IPC, mapped
	Cold Tier = "cold" // S3, Parquet
)

// Location is one place where a batch's bytes are.
type Location struct {
	Tier   Tier   `json:"tier"`
	URI    string `json:"uri"`              // shm://ARENA/OFFSET+LENGTH.GENERATION, grpc+tcp://HOST:PORT, file://..., s3://BUCKET/KEY
	Bytes  int64  `json:"bytes"`            // size in that tier's encoding
	SHA256 string `json:"sha256,omitempty"` // hex, of the bytes at URI; empty for shared memory
	Codec  string `json:"codec"`            // "arrow-ipc" or "parquet"
}

// Ref names one immutable record batch and says where its bytes are now.
// Dataset and Sequence identify it for ever; Locations change as tiers do.
type Ref struct {
	Dataset     string     `json:"dataset"`
	Sequence    uint64     `json:"sequence"`
	Rows        int64      `json:"rows"`
	BodyBytes   int64      `json:"body_bytes"`  // Arrow body, uncompressed, padding included
	Fingerprint string     `json:"fingerprint"` // of the schema, see Fingerprint
	Locations   []Location `json:"locations,omitempty"`
}

// ID is the batch's permanent name, "DATASET#SEQUENCE".
func (r Ref) ID() string { return fmt.Sprintf("%s#%d", r.Dataset, r.Sequence) }

// In returns the location in tier t.
func (r Ref) In(t Tier) (Location, bool) {
	for _, l := range r.Locations {
		if l.Tier == t {
			return l, true
		}
	}
	return Location{}, false
}

// ErrCorrupt means: bytes do not match their checksum, schema or framing.
var ErrCorrupt = errors.New("corrupt batch")

// ErrUnsupported means: a frame may be valid Arrow, but in a form that cannot be
// used in place or that this process has no type for (compressed, big-endian,
// metadata before V5, dictionary delta or replacement). Its writer should write
// it otherwise. Errors that wrap it wrap ErrCorrupt too.
var ErrUnsupported = errors.New("unsupported form of Arrow data")

// ErrGone means: the location no longer exists (arena closed, slot reused, object
// deleted). Another location may still serve.
var ErrGone = errors.New("batch location gone")
