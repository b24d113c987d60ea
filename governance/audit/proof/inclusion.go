package proof

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	inclusionFormat = "stokehold-inclusion/1"
	// MaxInclusionBytes bounds an inclusion proof's document.
	MaxInclusionBytes = 4 << 20
)

// Inclusion proves that an entry is in a log whose checkpoint was signed. It is a
// JSON document of its own: whoever trusts the key needs nothing else.
type Inclusion struct {
	Format     string           `json:"format"`     // stokehold-inclusion/1
	Entry      Entry            `json:"entry"`      // what the leaf says, for people
	Leaf       []byte           `json:"leaf"`       // the entry's bytes, base64
	Index      int64            `json:"index"`      // of the entry, from 0
	Hashes     tlog.RecordProof `json:"hashes"`     // RFC 6962 audit path, from the leaf up, base64
	Checkpoint string           `json:"checkpoint"` // the signed note
	Keys       []string         `json:"keys"`       // public keys that signed it; trust none because it is here
}

// Marshal returns the document, indented.
func (p *Inclusion) Marshal() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(p); err != nil {
		return nil, fmt.Errorf("inclusion proof: %w", err)
	}
	return b.Bytes(), nil
}

// NewInclusion puts a document together and checks it as anyone would.
func NewInclusion(leaf []byte, index int64, hashes tlog.RecordProof, signed []byte, keys *Keys) (*Inclusion, error) {
	e, err := DecodeLeaf(leaf)
	if err != nil {
		return nil, err
	}
	if hashes == nil {
		hashes = tlog.RecordProof{}
	}
	p := &Inclusion{Format: inclusionFormat, Entry: e.printable(), Leaf: leaf, Index: index, Hashes: hashes, Checkpoint: string(signed), Keys: keys.Public()}
	_, err = p.Check(keys)
	return p, err
}

// CheckInclusion reads a document and checks it. Errors wrap ErrMalformed,
// ErrSignature or ErrProof.
func CheckInclusion(doc []byte, trusted *Keys) (*Inclusion, Checkpoint, error) {
	if len(doc) > MaxInclusionBytes {
		return nil, Checkpoint{}, fmt.Errorf("inclusion proof: %w: %d bytes", ErrMalformed, len(doc))
	}
	var p Inclusion
	if err := decodeStrictly(doc, &p); err != nil {
		return nil, Checkpoint{}, fmt.Errorf("inclusion proof: %w: %w", ErrMalformed, err)
	}
	c, err := p.Check(trusted)
	return &p, c, err
}

// Check verifies the proof against keys that the caller trusts, and that Entry says
// what the proven leaf says. It returns the checkpoint that the entry is under.
func (p *Inclusion) Check(trusted *Keys) (Checkpoint, error) {
	if p.Format != inclusionFormat {
		return Checkpoint{}, fmt.Errorf("inclusion proof: %w: format %.40q is not %s", ErrMalformed, p.Format, inclusionFormat)
	}
	e, err := DecodeLeaf(p.Leaf)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := OpenCheckpoint([]byte(p.Checkpoint), trusted)
	if err != nil {
		return Checkpoint{}, err
	}
	if len(p.Hashes) > 64 || tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, LeafHash(p.Leaf)) != nil {
		return Checkpoint{}, fmt.Errorf("%w: entry %d is not in the log of %d entries that was signed", ErrProof, p.Index, c.Size)
	}
	shown := p.Entry
	if !shown.Time.Equal(e.Time) {
		return Checkpoint{}, fmt.Errorf("%w: the entry shown is not the one proven: time %s, proven %s", ErrProof, stamp(shown.Time), stamp(e.Time))
	}
	shown.Time, e = e.Time, e.printable()
	if !reflect.DeepEqual(shown, e) {
		return Checkpoint{}, fmt.Errorf("%w: the entry shown is not the one proven", ErrProof)
	}
	return c, nil
}

// printable is the entry as JSON can hold it: what is not UTF-8 is replaced.
func (e Entry) printable() Entry {
	for _, s := range e.texts() {
		*s = strings.ToValidUTF8(*s, "\ufffd")
	}
	notes := e.Notes
	e.Notes = nil
	for _, n := range notes {
		for _, s := range [...]*string{&n.Policy, &n.Rule, &n.Reason, &n.Mode} {
			*s = strings.ToValidUTF8(*s, "\ufffd")
		}
		e.Notes = append(e.Notes, n)
	}
	return e
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
