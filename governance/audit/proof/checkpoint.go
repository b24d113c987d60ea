package proof

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Sentinels of what verification finds.
var (
	// ErrSignature: no key that is trusted signed this, or a signature is wrong.
	ErrSignature = errors.New("not signed by a trusted key")
	// ErrFork: two histories that do not extend one another.
	ErrFork = errors.New("the log was forked: one history does not extend the other")
	// ErrProof: a proof does not prove what it claims.
	ErrProof = errors.New("the proof does not hold")
)

// Checkpoint is a signed statement that the first Size entries of a log have the
// hash Root. What follows Root is signed with it.
type Checkpoint struct {
	Origin string // names the log; also the name of the keys that sign
	Size   int64  // entries
	Root   tlog.Hash
	Time   time.Time // of signing
	// Sequence is that of the last stream message whose decisions are in the tree.
	// The server stored it at Stored, and the first one since the checkpoint before
	// at Begun.
	Sequence      uint64
	Begun, Stored time.Time
	Since         int64     // size of the checkpoint that this one extends; 0 for the first
	Trace         tlog.Hash // digest of the trace from Since to Size
}

// maxCheckpointBytes bounds a signed note.
const maxCheckpointBytes = 16 << 10

// Text is the note's text: lines of origin, size and root as
// https://c2sp.org/tlog-checkpoint has them, then time, message, begun, stored,
// since and trace, each a word and a value.
func (c *Checkpoint) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\ntime %s\nmessage %d\nbegun %s\nstored %s\nsince %d\ntrace %s\n",
		c.Origin, c.Size, c.Root, utc(c.Time), c.Sequence, utc(c.Begun), utc(c.Stored), c.Since, c.Trace)
}

// parseCheckpoint reads what Text wrote, and nothing else. Lines after those known
// are a later version's.
func parseCheckpoint(text string) (Checkpoint, error) {
	bad := func(what string) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: %s", ErrMalformed, what)
	}
	lines := strings.Split(text, "\n")
	const known = 9
	if len(lines) <= known || lines[len(lines)-1] != "" {
		return bad("lines are missing")
	}
	c := Checkpoint{Origin: lines[0]}
	if !validOrigin(c.Origin) {
		return bad("no origin")
	}
	var errs [8]error
	value := func(i int, word string) string {
		v, ok := strings.CutPrefix(lines[i], word+" ")
		if !ok {
			errs[0] = errors.New("line " + word)
		}
		return v
	}
	c.Size, errs[1] = number(lines[1])
	c.Root, errs[2] = tlog.ParseHash(lines[2])
	c.Time, errs[3] = time.Parse(time.RFC3339Nano, value(3, "time"))
	sequence, err := number(value(4, "message"))
	c.Sequence, errs[4] = uint64(sequence), err
	c.Begun, errs[5] = time.Parse(time.RFC3339Nano, value(5, "begun"))
	c.Stored, errs[6] = time.Parse(time.RFC3339Nano, value(6, "stored"))
	c.Since, errs[7] = number(value(7, "since"))
	trace, err := tlog.ParseHash(value(8, "trace"))
	c.Trace = trace
	if err := errors.Join(append(errs[:], err)...); err != nil {
		return bad(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if c.Since > c.Size {
		return bad("it is smaller than the one before it")
	}
	// One text for one checkpoint: 007 or another time zone would be signed too.
	if c.Text() != strings.Join(lines[:known], "\n")+"\n" {
		return bad("not in the canonical form")
	}
	return c, nil
}

func utc(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

func number(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err
}

// validOrigin follows what notes allow as a key's name.
func validOrigin(s string) bool {
	return s != "" && len(s) <= 128 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '+' || r > '~' })
}

// Sign signs the checkpoint with all keys of the ring that can sign.
func (c *Checkpoint) Sign(keys *Keys) ([]byte, error) {
	if len(keys.signers) == 0 {
		return nil, fmt.Errorf("checkpoint: %w: the key file has no private key", ErrKey)
	}
	if c.Origin != keys.Origin() {
		return nil, fmt.Errorf("checkpoint: %w: the key is of log %q, not of %q", ErrKey, keys.Origin(), c.Origin)
	}
	signed, err := note.Sign(&note.Note{Text: c.Text()}, keys.signers...)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: sign: %w", err)
	}
	return signed, nil
}

// OpenCheckpoint reads a signed checkpoint. Every signature by a key of the ring
// must be right, and there must be one. Errors wrap ErrSignature or ErrMalformed.
func OpenCheckpoint(signed []byte, keys *Keys) (Checkpoint, error) {
	if len(signed) > maxCheckpointBytes {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: %d bytes", ErrMalformed, len(signed))
	}
	n, err := note.Open(signed, keys)
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	switch {
	case errors.As(err, &unverified):
		var names []string
		for _, s := range unverified.Note.UnverifiedSigs {
			names = append(names, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
		}
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: it is signed by %.200s; trusted are %s", ErrSignature, strings.Join(names, ", "), keys)
	case errors.As(err, &invalid):
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: the signature of %s+%08x is wrong", ErrSignature, invalid.Name, invalid.Hash)
	case err != nil:
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: %w", ErrMalformed, err)
	}
	c, err := parseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != keys.Origin() {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w: it is of log %q; the key is of %q", ErrSignature, c.Origin, keys.Origin())
	}
	return c, nil
}
