package proof

import (
	"crypto/sha256"
	"encoding/binary"

	"golang.org/x/mod/sumdb/tlog"
)

// maxTrace bounds the hashes of a trace, and with them a checkpoint record.
const maxTrace = 4096

// Trace says of the entries between two checkpoints which is which, so that a
// verifier can tell where a log differs and not only that it does: hashes of
// consecutive entries in groups of Span, a power of two. A group's hash is the
// RFC 6962 root over the leaves in it. Span is 1 for up to 4,096 entries and
// doubles beyond. The last group may be smaller. The checkpoint signs its digest.
type Trace struct {
	Start  int64       `json:"start"` // index of the first entry
	Span   int64       `json:"span"`  // entries for each hash
	Hashes []tlog.Hash `json:"hashes"`
}

// tracer makes a Trace.
type tracer struct {
	start, span int64
	hashes      []tlog.Hash
	group       Tree
}

func newTracer(start int64) *tracer { return &tracer{start: start, span: 1} }

func (t *tracer) add(leaf tlog.Hash) {
	if t.group.Append(leaf, nil); t.group.size < t.span {
		return
	}
	if len(t.hashes) == maxTrace { // the group is the first beyond: halve
		t.hashes = coarser(t.hashes)
		t.span *= 2
		if t.group.size < t.span {
			return
		}
	}
	t.hashes = append(t.hashes, t.group.Root())
	t.group = Tree{edge: t.group.edge[:0]}
}

func (t *tracer) trace() Trace {
	hs := append([]tlog.Hash{}, t.hashes...)
	if t.group.size > 0 {
		hs = append(hs, t.group.Root())
	}
	return Trace{Start: t.start, Span: t.span, Hashes: hs}
}

// coarser joins groups by two. An odd last one stays what it is.
func coarser(hs []tlog.Hash) []tlog.Hash {
	out := hs[:0:0]
	for i := 0; i+1 < len(hs); i += 2 {
		out = append(out, tlog.NodeHash(hs[i], hs[i+1]))
	}
	if len(hs)%2 == 1 {
		out = append(out, hs[len(hs)-1])
	}
	return out
}

const traceTag = "stk-trace-1\x00"

// Digest is SHA-256("stk-trace-1" 0, start, span, hashes), the numbers as 8 bytes
// big endian.
func (t *Trace) Digest() tlog.Hash {
	h := sha256.New()
	h.Write([]byte(traceTag)) // a hash.Hash never fails
	var n [16]byte
	binary.BigEndian.PutUint64(n[:8], uint64(t.Start))
	binary.BigEndian.PutUint64(n[8:], uint64(t.Span))
	h.Write(n[:])
	for i := range t.Hashes {
		h.Write(t.Hashes[i][:])
	}
	var out tlog.Hash
	h.Sum(out[:0])
	return out
}

// Change is how what is there differs from what was signed.
type Change string

// The changes that a trace can tell apart.
const (
	Missing   Change = "missing"   // entries were taken out
	Added     Change = "added"     // entries were put in
	Reordered Change = "reordered" // the same entries in another order
	Edited    Change = "edited"    // other entries in the same places
)

// Difference is the first place where entries differ from what was signed.
type Difference struct {
	Change   Change
	From, To int64 // the entries signed at [From, To) are those concerned
}

// Compare says how got differs from what was signed; ok is false if it does not.
// got may go on beyond, or end before. With groups of more than one entry the
// places are those of groups, and a change inside a group is Edited.
func (t *Trace) Compare(got *Trace) (d Difference, ok bool) {
	want, have, span := t.Hashes, got.Hashes, t.Span
	for s := got.Span; s < span; s *= 2 {
		have = coarser(have)
	}
	for ; span < got.Span; span *= 2 {
		want = coarser(want)
	}
	at := func(i int) int64 { return t.Start + int64(i)*span }
	first := 0
	for first < len(want) && first < len(have) && want[first] == have[first] {
		first++
	}
	w, h := want[first:], have[first:]
	switch {
	case len(w) == 0 && len(h) == 0:
		return Difference{}, false
	case len(h) == 0:
		return Difference{Missing, at(first), at(len(want))}, true
	case len(w) == 0:
		return Difference{Added, at(first), at(first)}, true
	}
	last := len(w)
	if len(w) == len(h) {
		for w[last-1] == h[last-1] {
			last--
		}
		if permuted(w[:last], h[:last]) {
			return Difference{Reordered, at(first), at(first + last)}, true
		}
	}
	if k := shift(w, h); k > 0 {
		return Difference{Missing, at(first), at(first + k)}, true
	}
	if k := shift(h, w); k > 0 {
		return Difference{Added, at(first), at(first)}, true
	}
	return Difference{Edited, at(first), at(first + last)}, true
}

// shift returns how many hashes have to go from the front of long for the rest to
// go like short as far as both reach; 0 if none will do.
func shift(long, short []tlog.Hash) int {
	for k := 1; k < len(long); k++ {
		if long[k] != short[0] {
			continue
		}
		n := min(len(long)-k, len(short))
		same := true
		for i := range n {
			if long[k+i] != short[i] {
				same = false
				break
			}
		}
		if same {
			return k
		}
	}
	return 0
}

func permuted(a, b []tlog.Hash) bool {
	n := make(map[tlog.Hash]int, len(a))
	for _, h := range a {
		n[h]++
	}
	for _, h := range b {
		if n[h]--; n[h] < 0 {
			return false
		}
	}
	return true
}
