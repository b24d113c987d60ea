package proof

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrMalformed means that bytes are not what their format says.
var ErrMalformed = errors.New("malformed")

// Entry is a decision as the log keeps it: governance.Decision without the types.
type Entry struct {
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Point    string    `json:"point"`
	Action   string    `json:"action"`
	EventID  string    `json:"event_id"`
	Type     string    `json:"type"`
	Source   string    `json:"source"`
	Subject  string    `json:"subject,omitempty"`
	Pipeline string    `json:"pipeline,omitempty"`
	Run      string    `json:"run,omitempty"`
	Policy   string    `json:"policy,omitempty"`
	Rule     string    `json:"rule,omitempty"`
	Code     string    `json:"code,omitempty"`
	Reason   string    `json:"reason,omitempty"`
	Digest   string    `json:"digest"`
	Actor    string    `json:"actor,omitempty"`
	Approval string    `json:"approval,omitempty"`
	Effect   string    `json:"effect,omitempty"`
	Notes    []Note    `json:"notes,omitempty"`
}

// Note is a rule that did not hold but did not decide either.
type Note struct {
	Policy string `json:"policy"`
	Rule   string `json:"rule,omitempty"`
	Reason string `json:"reason,omitempty"`
	Mode   string `json:"mode"`
	Action string `json:"action,omitempty"`
}

// A leaf is the magic and fields in the order of their tags, each as
//
//	uvarint tag, uvarint length, bytes
//
// A text field that is empty is left out, and so is a time that is zero. The value
// of tagTime is seconds since 1970 (8 bytes, big endian, two's complement) and
// nanoseconds (4 bytes, big endian); that of tagNote, which may be there more than
// once, is policy, rule, reason and mode, each as uvarint length and bytes; that of
// tagActions is the notes' actions in their order, written likewise, and left out if
// all are empty. A later version adds tags; the bytes of what is there stay as they
// are.
const leafMagic = "STKL\x01"

const (
	tagTime    = 15
	tagNote    = 16
	tagLater   = 17 // the first of the later text fields
	tagActions = 20
	timeBytes  = 12

	// MaxLeafBytes bounds one leaf.
	MaxLeafBytes = 1 << 20
	maxNotes     = 64
)

const textFields, laterFields = 14, 3

// texts lists the text fields by tag: the first is tag 1.
func (e *Entry) texts() [textFields]*string {
	return [textFields]*string{
		&e.ID, &e.Point, &e.Action, &e.EventID, &e.Type, &e.Source, &e.Subject, &e.Pipeline, &e.Run,
		&e.Policy, &e.Rule, &e.Code, &e.Reason, &e.Digest,
	}
}

// later lists the text fields that a later version added: the first is tagLater.
func (e *Entry) later() [laterFields]*string {
	return [laterFields]*string{&e.Actor, &e.Approval, &e.Effect}
}

// AppendLeaf appends the leaf of e to b.
func AppendLeaf(b []byte, e *Entry) []byte {
	b = append(b, leafMagic...)
	for i, s := range e.texts() {
		if *s != "" {
			b = append(b, byte(i+1))
			b = appendText(b, *s)
		}
	}
	if !e.Time.IsZero() {
		b = append(b, tagTime, timeBytes)
		b = binary.BigEndian.AppendUint64(b, uint64(e.Time.Unix()))
		b = binary.BigEndian.AppendUint32(b, uint32(e.Time.Nanosecond()))
	}
	for i := range e.Notes {
		n := &e.Notes[i]
		b = append(b, tagNote)
		b = binary.AppendUvarint(b, uint64(textSize(n.Policy)+textSize(n.Rule)+textSize(n.Reason)+textSize(n.Mode)))
		for _, s := range [...]string{n.Policy, n.Rule, n.Reason, n.Mode} {
			b = appendText(b, s)
		}
	}
	for i, s := range e.later() {
		if *s != "" {
			b = append(b, byte(tagLater+i))
			b = appendText(b, *s)
		}
	}
	return appendActions(b, e.Notes)
}

func appendActions(b []byte, notes []Note) []byte {
	size, some := 0, false
	for i := range notes {
		size += textSize(notes[i].Action)
		some = some || notes[i].Action != ""
	}
	if !some {
		return b
	}
	b = append(b, tagActions)
	b = binary.AppendUvarint(b, uint64(size))
	for i := range notes {
		b = appendText(b, notes[i].Action)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// textSize is how many bytes appendText adds.
func textSize(s string) int {
	n := 1
	for v := len(s); v >= 0x80; v >>= 7 {
		n++
	}
	return n + len(s)
}

// LeafHash is what the tree has of a leaf: SHA-256(0x00, leaf), as in RFC 6962.
func LeafHash(leaf []byte) tlog.Hash { return tlog.RecordHash(leaf) }

// DecodeLeaf reads a leaf. Fields of later versions are passed over. The error
// wraps ErrMalformed.
func DecodeLeaf(leaf []byte) (Entry, error) {
	bad := func(what string) (Entry, error) { return Entry{}, fmt.Errorf("leaf: %w: %s", ErrMalformed, what) }
	if len(leaf) > MaxLeafBytes || len(leaf) < len(leafMagic) || string(leaf[:len(leafMagic)]) != leafMagic {
		return bad("unknown format")
	}
	var e Entry
	texts, later := e.texts(), e.later()
	b, last := leaf[len(leafMagic):], uint64(0)
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag == 0 || tag < last || tag == last && tag != tagNote {
			return bad("fields out of order")
		}
		b, last = b[n:], tag
		value, rest, ok := cutText(b)
		if !ok {
			return bad("cut off")
		}
		b = rest
		switch {
		case tag <= textFields:
			if len(value) == 0 {
				return bad("an empty field")
			}
			*texts[tag-1] = string(value)
		case tag >= tagLater && tag < tagLater+laterFields:
			if len(value) == 0 {
				return bad("an empty field")
			}
			*later[tag-tagLater] = string(value)
		case tag == tagActions:
			if !readActions(value, e.Notes) {
				return bad("actions that are not the notes'")
			}
		case tag == tagTime:
			if len(value) != timeBytes {
				return bad("a time of the wrong size")
			}
			sec, nsec := int64(binary.BigEndian.Uint64(value)), binary.BigEndian.Uint32(value[8:])
			if nsec >= 1e9 || sec > math.MaxInt64/2 || sec < math.MinInt64/2 {
				return bad("no time")
			}
			if e.Time = time.Unix(sec, int64(nsec)).UTC(); e.Time.IsZero() {
				return bad("an empty field")
			}
		case tag == tagNote:
			if len(e.Notes) == maxNotes {
				return bad("too many notes")
			}
			var note Note
			for _, s := range [...]*string{&note.Policy, &note.Rule, &note.Reason, &note.Mode} {
				part, more, ok := cutText(value)
				if !ok {
					return bad("a note cut off")
				}
				*s, value = string(part), more
			}
			if len(value) > 0 {
				return bad("a note too long")
			}
			e.Notes = append(e.Notes, note)
		}
	}
	return e, nil
}

// readActions is appendActions backwards.
func readActions(value []byte, notes []Note) bool {
	some := false
	for i := range notes {
		action, rest, ok := cutText(value)
		if !ok {
			return false
		}
		notes[i].Action, value = string(action), rest
		some = some || len(action) > 0
	}
	return some && len(value) == 0
}

func cutText(b []byte) (value, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, nil, false
	}
	return b[n : n+int(size)], b[n+int(size):], true
}
