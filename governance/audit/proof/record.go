package proof

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	recordFormat = "stokehold-checkpoint/1"
	// MaxRecordBytes bounds a stored record.
	MaxRecordBytes = 1 << 20
)

// Record is a checkpoint as it is stored: the signed note with what a verifier
// needs to go on from there without the entries before, which retention drops one
// day. All of it is held to what the note signs.
type Record struct {
	Checkpoint
	Signed []byte         // the note
	Edge   []tlog.Hash    // of the tree of Size entries
	Extend tlog.TreeProof // that it extends the tree of Since entries; nil if Since is 0
	Trace  Trace
}

// recordJSON is the stored form.
type recordJSON struct {
	Format string         `json:"format"`
	Note   string         `json:"note"`
	Edge   []tlog.Hash    `json:"edge"`
	Extend tlog.TreeProof `json:"extend"`
	Trace  Trace          `json:"trace"`
}

// Marshal returns the stored form.
func (r *Record) Marshal() ([]byte, error) {
	b, err := json.Marshal(recordJSON{Format: recordFormat, Note: string(r.Signed), Edge: r.Edge, Extend: r.Extend, Trace: r.Trace})
	if err != nil {
		return nil, fmt.Errorf("checkpoint record: %w", err)
	}
	return b, nil
}

// Name is the record's name in a store: names sort by size. Records of the same
// size that differ have different names, so that a fork hides nothing.
func (r *Record) Name() string {
	sum := sha256.Sum256(r.Signed)
	return fmt.Sprintf("%020d-%s.json", r.Size, hex.EncodeToString(sum[:8]))
}

// OpenRecord reads a stored record: the signature, that the edge is that of the
// root, and that the trace is the one signed. Whether it extends the one before is
// for Extends. Errors wrap ErrMalformed, ErrSignature or ErrProof.
func OpenRecord(b []byte, keys *Keys) (*Record, error) {
	if len(b) > MaxRecordBytes {
		return nil, fmt.Errorf("checkpoint record: %w: %d bytes", ErrMalformed, len(b))
	}
	var j recordJSON
	if err := decodeStrictly(b, &j); err != nil {
		return nil, fmt.Errorf("checkpoint record: %w: %w", ErrMalformed, err)
	}
	if j.Format != recordFormat {
		return nil, fmt.Errorf("checkpoint record: %w: format %.40q is not %s", ErrMalformed, j.Format, recordFormat)
	}
	c, err := OpenCheckpoint([]byte(j.Note), keys)
	if err != nil {
		return nil, err
	}
	r := &Record{Checkpoint: c, Signed: []byte(j.Note), Edge: j.Edge, Extend: j.Extend, Trace: j.Trace}
	tree, err := NewTree(r.Size, r.Edge)
	if err != nil {
		return nil, err
	}
	if tree.Root() != r.Root {
		return nil, fmt.Errorf("checkpoint of %d entries: %w: its edge is not that of its root", r.Size, ErrProof)
	}
	t := &r.Trace
	if t.Start != r.Since || t.Span < 1 || t.Span&(t.Span-1) != 0 || t.Span > 1<<40 || int64(len(t.Hashes)) != (r.Size-r.Since+t.Span-1)/t.Span || t.Digest() != r.Checkpoint.Trace {
		return nil, fmt.Errorf("checkpoint of %d entries: %w: its trace is not the one signed", r.Size, ErrProof)
	}
	return r, nil
}

// Extends checks that r extends a checkpoint of r.Since entries and that root. The
// error wraps ErrFork.
func (r *Record) Extends(root tlog.Hash) error {
	if r.Since == 0 {
		return nil
	}
	if err := tlog.CheckTree(r.Extend, r.Size, r.Root, r.Since, root); err != nil {
		return fmt.Errorf("%w: the checkpoint of %d entries (signed %s) does not extend the one of %d", ErrFork, r.Size, stamp(r.Time), r.Since)
	}
	return nil
}

// Tree is the tree as it was at the checkpoint.
func (r *Record) Tree() *Tree { return &Tree{size: r.Size, edge: append([]tlog.Hash(nil), r.Edge...)} }

// Replay recomputes a log from a checkpoint on, in bounded memory. Not safe for
// concurrent use.
type Replay struct {
	tree  *Tree
	trace *tracer
}

// NewReplay starts from a record, or with an empty log if it is nil.
func NewReplay(from *Record) *Replay {
	t := &Tree{}
	if from != nil {
		t = from.Tree()
	}
	return &Replay{tree: t, trace: newTracer(t.size)}
}

// Add appends the leaf's hash.
func (r *Replay) Add(leaf tlog.Hash) {
	r.tree.Append(leaf, nil)
	r.trace.add(leaf)
}

// Size is the number of entries now.
func (r *Replay) Size() int64 { return r.tree.size }

// Root is the root now.
func (r *Replay) Root() tlog.Hash { return r.tree.Root() }

// Trace is the trace since the start.
func (r *Replay) Trace() Trace { return r.trace.trace() }

// Growth is a Replay that can prove and sign. It keeps 64 bytes for each entry
// since its start. Not safe for concurrent use.
type Growth struct {
	Replay
	since Checkpoint // zero: the empty log
	span  *Span
}

// NewGrowth starts from a record, or with an empty log if it is nil.
func NewGrowth(from *Record) *Growth {
	g := &Growth{Replay: *NewReplay(from)}
	if from != nil {
		g.since = from.Checkpoint
	}
	g.span = NewSpan(g.tree)
	return g
}

// Add appends the leaf's hash.
func (g *Growth) Add(leaf tlog.Hash) {
	g.tree.Append(leaf, g.span.Add)
	g.trace.add(leaf)
}

// Since is the checkpoint that the growth started from; zero if none.
func (g *Growth) Since() Checkpoint { return g.since }

// Added is the number of entries since the start.
func (g *Growth) Added() int64 { return g.tree.size - g.since.Size }

// Sign makes a signed record of the log as it is now and starts the next growth
// from it. at gives Time, Sequence, Begun and Stored. It proves that the new checkpoint
// extends the last, checks the proof as anyone else would, and signs nothing that
// fails: that error wraps ErrFork.
func (g *Growth) Sign(keys *Keys, at Checkpoint) (*Record, error) {
	trace := g.trace.trace()
	c := Checkpoint{
		Origin: keys.Origin(), Size: g.tree.size, Root: g.tree.Root(), Time: at.Time, Sequence: at.Sequence, Begun: at.Begun, Stored: at.Stored,
		Since: g.since.Size, Trace: trace.Digest(),
	}
	r := &Record{Checkpoint: c, Edge: g.tree.Edge(), Trace: trace}
	if c.Since > 0 {
		var err error
		if r.Extend, err = tlog.ProveTree(c.Size, c.Since, g.span); err != nil {
			return nil, fmt.Errorf("checkpoint of %d entries: %w: %w", c.Size, ErrFork, err)
		}
		if err := r.Extends(g.since.Root); err != nil {
			return nil, err
		}
	}
	var err error
	if r.Signed, err = c.Sign(keys); err != nil {
		return nil, err
	}
	g.since, g.trace = c, newTracer(c.Size)
	g.span.Reset(g.tree)
	return r, nil
}

// Prove makes the inclusion proof of an entry since the checkpoint that the growth
// started from, in the tree of the size of a record that it has reached.
func (g *Growth) Prove(index, size int64) (tlog.RecordProof, error) {
	if index < g.span.from || size > g.tree.size {
		return nil, fmt.Errorf("%w: entry %d of %d is not among those from %d to %d", ErrProof, index, size, g.span.from, g.tree.size)
	}
	p, err := tlog.ProveRecord(size, index, g.span)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	return p, nil
}

// decodeStrictly refuses unknown keys and what comes after.
func decodeStrictly(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the document", ErrMalformed)
	}
	return nil
}
