package tiers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

const maxKeyBytes = 512

// ErrExists means PutIfAbsent found an object. It may be this call's own, whose
// acknowledgement was lost: compare the contents where that matters.
var ErrExists = errors.New("object exists")

// The optional powers of an ObjectStore, beside Syncer. A caller asks for one by a
// type assertion.
type (
	// RangeReader reads parts of objects. ReadRange fills dst with what begins at
	// offset; as io.ReaderAt does, it returns io.EOF with what there is where the
	// object ends before. Ranges are not verified: their reader has to.
	RangeReader interface {
		ReadRange(ctx context.Context, key string, offset int64, dst []byte) (int, error)
	}
	// Filler reads objects into memory that the caller has, and hashes them while they
	// arrive. Fill reads the whole object to the front of dst and returns its size; of
	// one with more bytes than dst the error wraps ErrTooLarge. sum, unless it is nil,
	// is written every byte, once and in order. What is read is as it came: unlike Get,
	// Fill verifies nothing.
	Filler interface {
		Fill(ctx context.Context, key string, dst []byte, sum hash.Hash) (int, error)
	}
	// AbsentPutter stores an object only if there is none under the key: ErrExists
	// otherwise. That exactly one of several concurrent calls succeeds is certain
	// only if Guarantees say so.
	AbsentPutter interface {
		PutIfAbsent(ctx context.Context, key string, body []byte) error
	}
	// PartialSweeper removes what uploads that never ended have left and is older
	// than the grace, which must exceed the longest upload. It returns how many
	// things went. Older versions of objects count, where the bucket keeps them.
	PartialSweeper interface {
		SweepPartial(ctx context.Context, grace time.Duration) (int, error)
	}
	// Clock tells the time that the store's own ObjectInfo.Modified is by.
	Clock interface {
		Now(ctx context.Context) (time.Time, error)
	}
	// Guarantor says what the store was found to keep.
	Guarantor interface {
		Guarantees() Guarantees
	}
)

// Guarantees are what a store was found to keep when it was probed, and what is
// declared of it because it cannot be probed. The zero value promises nothing.
type Guarantees struct {
	Probed time.Time `json:"probed,omitzero"` // zero: it was not
	// Syncs is declared: acknowledged objects survive a power cut.
	Syncs bool `json:"syncs"`
	// ConditionalPut: in every round exactly one of several concurrent PutIfAbsent
	// succeeded. MostWinners is the highest count of a round.
	ConditionalPut bool `json:"conditionalPut"`
	MostWinners    int  `json:"mostWinners"`
	// ConditionalMultipart: the condition also holds for objects that go in parts.
	ConditionalMultipart bool `json:"conditionalMultipart"`
	ReadAfterWrite       bool `json:"readAfterWrite"` // and after deletion
	ListAfterWrite       bool `json:"listAfterWrite"` // and after deletion
	// Checksums are those that the store compares with what it received:
	// "CRC64NVME", "SHA256".
	Checksums []string `json:"checksums,omitempty"`
	Versioned bool     `json:"versioned"` // the bucket keeps older versions
	// ClockSkew is the endpoint's clock minus this machine's.
	ClockSkew time.Duration `json:"clockSkew"`
	// Notes say why something could not be found out.
	Notes []string `json:"notes,omitempty"`
}

// KeySum returns the SHA-256 that key names as its object's content: its last
// element, without an extension, is 64 hexadecimal digits. Drivers may have the
// endpoint compare, and refuse other content.
func KeySum(key string) (sum [sha256.Size]byte, ok bool) {
	name, _, _ := strings.Cut(path.Base(key), ".")
	if len(name) != hex.EncodedLen(len(sum)) || strings.ToLower(name) != name {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(name))
	return sum, err == nil
}

// CheckKey says whether key may name an object, for drivers: UTF-8 of 1 to 512
// bytes without control characters, a clean relative path whose elements do not
// begin with a dot. The error wraps ErrName.
func CheckKey(key string) error {
	bad := func(why string) error { return fmt.Errorf("%w: key %.80q %s", ErrName, key, why) }
	switch {
	case key == "" || len(key) > maxKeyBytes:
		return bad(fmt.Sprintf("has %d bytes, want 1 to %d", len(key), maxKeyBytes))
	case !utf8.ValidString(key):
		return bad("is not UTF-8")
	case strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }):
		return bad("has a control character or backslash")
	case strings.HasPrefix(key, "/") || path.Clean(key) != key:
		return bad("is not a clean relative path")
	}
	for part := range strings.SplitSeq(key, "/") {
		if strings.HasPrefix(part, ".") {
			return bad("has an element that begins with a dot")
		}
	}
	return nil
}
