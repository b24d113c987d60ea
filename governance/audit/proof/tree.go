package proof

import (
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is the right edge of a Merkle tree: enough to go on appending, to know the
// root, and to prove what comes later against what was before. It needs
// 32 bytes for each one bit of its size, however many entries there are. The zero
// value is the empty tree. Not safe for concurrent use.
type Tree struct {
	size int64
	edge []tlog.Hash // of the perfect subtrees that make up the tree, the largest first
}

// NewTree returns the tree of a size with an edge that Edge gave. The error wraps
// ErrMalformed. Whether it is the edge of some root, Root tells.
func NewTree(size int64, edge []tlog.Hash) (*Tree, error) {
	if size < 0 || len(edge) != bits.OnesCount64(uint64(size)) {
		return nil, fmt.Errorf("tree: %w: %d hashes are not the edge of %d entries", ErrMalformed, len(edge), size)
	}
	return &Tree{size: size, edge: append([]tlog.Hash(nil), edge...)}, nil
}

// Size is the number of entries.
func (t *Tree) Size() int64 { return t.size }

// Edge returns the hashes of the perfect subtrees that make up the tree, the
// largest, which is the leftmost, first.
func (t *Tree) Edge() []tlog.Hash { return append([]tlog.Hash(nil), t.edge...) }

// Clone returns a tree of its own.
func (t *Tree) Clone() *Tree { return &Tree{size: t.size, edge: t.Edge()} }

// Append adds an entry by the hash of its leaf. visit, if not nil, sees each
// subtree that it makes perfect, the leaf first, at its place in the order of
// tlog.StoredHashIndex: places follow one another without a gap.
func (t *Tree) Append(leaf tlog.Hash, visit func(tlog.Hash)) {
	h := leaf
	if visit != nil {
		visit(h)
	}
	for n := t.size; n&1 != 0; n >>= 1 {
		last := len(t.edge) - 1
		h = tlog.NodeHash(t.edge[last], h)
		t.edge = t.edge[:last]
		if visit != nil {
			visit(h)
		}
	}
	t.edge = append(t.edge, h)
	t.size++
}

// Root is the hash of the whole tree, as RFC 6962 has it.
func (t *Tree) Root() tlog.Hash {
	if t.size == 0 {
		h, _ := tlog.TreeHash(0, nil) // the hash of nothing asks no reader
		return h
	}
	h := t.edge[len(t.edge)-1]
	for i := len(t.edge) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.edge[i], h)
	}
	return h
}

// edgeIndexes are the places of the edge's hashes in tlog's order.
func edgeIndexes(size int64) []int64 {
	var out []int64
	at := int64(0)
	for level := 62; level >= 0; level-- {
		if n := int64(1) << level; size&n != 0 {
			out = append(out, tlog.StoredHashIndex(level, at>>level))
			at += n
		}
	}
	return out
}

// Span holds the hashes of the entries from some size on, for proofs about them.
// With the edge of the tree at that size it can make the consistency proof
// between any two sizes from there on, and the inclusion proof of any entry from
// there on: what such a proof needs of earlier entries are hashes of that edge.
// 64 bytes for each entry. Not safe for concurrent use.
type Span struct {
	from, base int64 // size, and the place of its next hash
	edge       map[int64]tlog.Hash
	hashes     []tlog.Hash
}

// NewSpan starts at the tree as it is.
func NewSpan(t *Tree) *Span {
	s := &Span{}
	s.Reset(t)
	return s
}

// Reset starts again at the tree as it is, and keeps the memory.
func (s *Span) Reset(t *Tree) {
	s.from, s.base, s.hashes = t.size, tlog.StoredHashIndex(0, t.size), s.hashes[:0]
	s.edge = make(map[int64]tlog.Hash, len(t.edge))
	for i, x := range edgeIndexes(t.size) {
		s.edge[x] = t.edge[i]
	}
}

// Add takes the next hash that Tree.Append shows.
func (s *Span) Add(h tlog.Hash) { s.hashes = append(s.hashes, h) }

// From is the size at which the span begins.
func (s *Span) From() int64 { return s.from }

// ReadHashes implements tlog.HashReader.
func (s *Span) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if h, ok := s.edge[x]; ok {
			out[i] = h
			continue
		}
		if x < s.base || x-s.base >= int64(len(s.hashes)) {
			return nil, fmt.Errorf("tree: hash %d is not among those kept since entry %d", x, s.from)
		}
		out[i] = s.hashes[x-s.base]
	}
	return out, nil
}
