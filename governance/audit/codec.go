package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// ErrCorrupt means that a message of the decision stream can't be decoded.
var ErrCorrupt = errors.New("corrupt decision record")

// A message is the magic and any number of blocks. A block is what one Append
// call contributed for one action:
//
//	uvarint count, then for each decision
//	  uvarint mask     bit i: field i has the value it had in the decision before
//	  id               bit idHex: 16 bytes, else string
//	  time             bit timeSame, else seconds (varint) and nanoseconds (uvarint)
//	  each field whose bit is not set, as string: uvarint length, bytes
//	  bit hasNotes: uvarint count, then policy, rule, reason, mode and action of each
//
// The first decision of a block follows one with empty fields, so that blocks
// stand alone and a message is their concatenation. Messages of the first version
// have fewer fields, and notes without action.
const (
	magic      = "STKD\x02"
	magicFirst = "STKD\x01"
)

// Bits of the mask after those of the fields.
const (
	idHex = iota
	timeSame
	hasNotes
	flags
)

const (
	fieldCount      = 16
	fieldCountFirst = 13
	reasonField     = 8 // of fields
)

// fields lists the string fields in the order of their bits.
func fields(d *governance.Decision) [fieldCount]string {
	return [fieldCount]string{
		string(d.Point), string(d.Action), d.Type, d.Source, d.Digest, d.Policy, d.Rule, d.Code, d.Reason,
		d.Pipeline, d.Run, d.Subject, d.EventID, d.Actor, d.Approval, d.Effect,
	}
}

func setFields(d *governance.Decision, f *[fieldCount]string) {
	d.Point, d.Action = events.Point(f[0]), events.Action(f[1])
	d.Type, d.Source, d.Digest, d.Policy, d.Rule, d.Code, d.Reason = f[2], f[3], f[4], f[5], f[6], f[7], f[8]
	d.Pipeline, d.Run, d.Subject, d.EventID = f[9], f[10], f[11], f[12]
	d.Actor, d.Approval, d.Effect = f[13], f[14], f[15]
}

// encoder appends decisions to a block.
type encoder struct {
	prev     [fieldCount]string
	prevTime time.Time
}

func (e *encoder) append(b []byte, d *governance.Decision) []byte {
	cur := fields(d)
	var mask uint64
	for i := range cur {
		if cur[i] == e.prev[i] {
			mask |= 1 << i
		}
	}
	raw, plain := unhexID(d.ID)
	if plain {
		mask |= 1 << (fieldCount + idHex)
	}
	if d.Time.Equal(e.prevTime) {
		mask |= 1 << (fieldCount + timeSame)
	}
	if len(d.Notes) > 0 {
		mask |= 1 << (fieldCount + hasNotes)
	}
	b = binary.AppendUvarint(b, mask)
	if plain {
		b = append(b, raw[:]...)
	} else {
		b = appendString(b, scrubURL(d.ID))
	}
	if mask&(1<<(fieldCount+timeSame)) == 0 {
		b = binary.AppendVarint(b, d.Time.Unix())
		b = binary.AppendUvarint(b, uint64(d.Time.Nanosecond()))
	}
	for i := range cur {
		switch {
		case mask&(1<<i) != 0:
		case i == reasonField:
			b = appendString(b, scrub(cur[i]))
		default:
			b = appendString(b, scrubURL(cur[i]))
		}
	}
	if len(d.Notes) > 0 {
		b = binary.AppendUvarint(b, uint64(len(d.Notes)))
		for i := range d.Notes {
			n := &d.Notes[i]
			b = appendString(b, scrubURL(n.Policy))
			b = appendString(b, scrubURL(n.Rule))
			b = appendString(b, scrub(n.Reason))
			b = appendString(b, scrubURL(string(n.Mode)))
			b = appendString(b, scrubURL(string(n.Action)))
		}
	}
	e.prev, e.prevTime = cur, d.Time
	return b
}

// unhexID decodes an id of 32 lower-case hexadecimal digits. ok is false for any
// other, which would not come back as it was.
func unhexID(id string) (raw [16]byte, ok bool) {
	if len(id) != 2*len(raw) {
		return raw, false
	}
	for i := range raw {
		hi, ok1 := unhex(id[2*i])
		lo, ok2 := unhex(id[2*i+1])
		if !ok1 || !ok2 {
			return raw, false
		}
		raw[i] = hi<<4 | lo
	}
	return raw, true
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// maxDecoded bounds the decisions of one message, whatever its counts claim.
const maxDecoded = 1 << 20

// decodeMessage calls f with the decisions of a message until f returns false. What
// the pointer points to is f's to keep only as a copy.
func decodeMessage(b []byte, f func(*governance.Decision) bool) error {
	d := decoder{fields: fieldCount}
	switch {
	case bytes.HasPrefix(b, []byte(magic)):
	case bytes.HasPrefix(b, []byte(magicFirst)):
		d.fields = fieldCountFirst
	default:
		return fmt.Errorf("%w: unknown format", ErrCorrupt)
	}
	d.b = b[len(magic):]
	total := 0
	for len(d.b) > 0 {
		n := d.uvarint()
		var prev [fieldCount]string
		var prevTime time.Time
		for range n {
			if total++; total > maxDecoded {
				return fmt.Errorf("%w: more than %d decisions", ErrCorrupt, maxDecoded)
			}
			out := d.decision(&prev, &prevTime)
			if d.err != nil {
				return d.err
			}
			if !f(&out) {
				return nil
			}
		}
		if d.err != nil {
			return d.err
		}
	}
	return nil
}

type decoder struct {
	fields int // of the message's version
	b      []byte
	err    error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad integer")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad integer")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.fail("cut off")
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) string() string { return string(d.bytes(d.uvarint())) }

func (d *decoder) decision(prev *[fieldCount]string, prevTime *time.Time) governance.Decision {
	mask := d.uvarint()
	if mask >= 1<<(d.fields+flags) {
		d.fail("unknown flags")
	}
	has := func(flag int) bool { return mask&(1<<(d.fields+flag)) != 0 }
	var out governance.Decision
	if has(idHex) {
		var id [32]byte
		out.ID = string(id[:hex.Encode(id[:], d.bytes(16))])
	} else {
		out.ID = d.string()
	}
	if !has(timeSame) {
		sec, nsec := d.varint(), d.uvarint()
		if nsec >= 1e9 || sec > math.MaxInt64/2 || sec < math.MinInt64/2 {
			d.fail("bad time")
			return out
		}
		*prevTime = time.Unix(sec, int64(nsec)).UTC()
	}
	out.Time = *prevTime
	for i := range d.fields {
		if mask&(1<<i) == 0 {
			prev[i] = d.string()
		}
	}
	setFields(&out, prev)
	if has(hasNotes) {
		n := d.uvarint()
		if n > governance.MaxNotes {
			d.fail("too many notes")
			return out
		}
		for range n {
			note := governance.Note{Policy: d.string(), Rule: d.string(), Reason: d.string(), Mode: governance.Mode(d.string())}
			if d.fields > fieldCountFirst {
				note.Action = events.Action(d.string())
			}
			out.Notes = append(out.Notes, note)
		}
	}
	return out
}
