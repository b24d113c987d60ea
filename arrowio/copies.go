package arrowio

import "sync/atomic"

// Copies counts batch body bytes that were copied, where they are copied. Pass
// one to the calls that may copy (EncodeTo, shm.Arena.Put, ...) and it says what
// a hand-over cost: a batch that travels by reference adds nothing. Body bytes
// are those of BodyBytes; schema and message metadata are not counted, since
// those are always copied. The zero value is ready; a nil *Copies counts
// nothing. Safe for concurrent use.
type Copies struct {
	bytes, batches atomic.Int64
}

// Add records that one batch's body of the given size in bytes was copied.
func (c *Copies) Add(bodyBytes int64) {
	if c == nil {
		return
	}
	c.bytes.Add(bodyBytes)
	c.batches.Add(1)
}

// Bytes is the number of body bytes copied.
func (c *Copies) Bytes() int64 {
	if c == nil {
		return 0
	}
	return c.bytes.Load()
}

// Batches is the number of times a batch body was copied.
func (c *Copies) Batches() int64 {
	if c == nil {
		return 0
	}
	return c.batches.Load()
}
