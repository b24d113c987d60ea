package shm

import "math/bits"

// space is the book of which parts of a range are taken: a two-level segregated
// fit with coalescing (M. Masmano and others, "TLSF: a new dynamic memory
// allocator for real-time systems", 2004), kept beside the memory and not in it,
// since readers map that. Every request is rounded up to whole lines of
// Alignment bytes. Free parts that touch are always one, so a range of which
// everything was given back is one part again.
//
// A size class holds its free parts last freed first, and a part that is larger
// than asked for is cut from its low end: memory that was in use a moment ago
// is handed out before memory that nobody has touched yet, whose first touch
// costs several times as much. A buddy system was rejected: batches come in all
// sizes, and rounding 16 MiB and a header up to 32 MiB would halve an arena.
//
// Not safe for concurrent use. Takes no memory per operation once its table of
// parts has grown to the most there were.
type space struct {
	parts []part // by number; number 0 is not used
	spare int32  // parts of the table that stand for nothing, chained by up
	last  int32  // the part at the end of the range
	heads [classes]int32
	outer uint64 // which powers of two have free parts
	inner [classes / steps]uint16
	bytes int64 // of the range
	free  int64
	count int // free parts
}

// part is a piece of the range: neighbours are chained by address, free ones
// also within their class.
type part struct {
	offset, bytes int64
	left, right   int32
	up, down      int32
	free          bool
}

const (
	steps   = 16 // classes within a power of two
	classes = 44 * steps
	// nearTries is how many parts of the request's own class are looked at before a
	// larger class is tried, where any part fits.
	nearTries = 8
)

// class is where parts of that many bytes are kept: sizes below steps lines have
// a class each, above that a power of two is cut into steps classes.
func class(bytes int64) int {
	n := uint64(bytes) / Alignment
	if n < steps {
		return int(n)
	}
	e := bits.Len64(n) - 1
	return min((e-3)*steps+int(n>>(e-4))&(steps-1), classes-1)
}

// reset makes all of the range free.
func (s *space) reset(bytes int64) {
	s.parts = append(s.parts[:0], part{})
	s.spare, s.outer, s.bytes, s.free, s.count = 0, 0, bytes, 0, 0
	clear(s.heads[:])
	clear(s.inner[:])
	s.last = s.node(part{bytes: bytes})
	s.file(s.last)
}

// node puts a part into the table.
func (s *space) node(p part) int32 {
	i := s.spare
	if i != 0 {
		s.spare = s.parts[i].up
		s.parts[i] = p
		return i
	}
	s.parts = append(s.parts, p)
	return int32(len(s.parts) - 1)
}

// forget takes a part out of the table.
func (s *space) forget(i int32) {
	s.parts[i] = part{up: s.spare}
	s.spare = i
}

// file makes a part free.
func (s *space) file(i int32) {
	p := &s.parts[i]
	c := class(p.bytes)
	p.free, p.down, p.up = true, 0, s.heads[c]
	if p.up != 0 {
		s.parts[p.up].down = i
	}
	s.heads[c] = i
	s.outer |= 1 << (c / steps)
	s.inner[c/steps] |= 1 << (c % steps)
	s.free += p.bytes
	s.count++
}

// unfile makes a free part taken.
func (s *space) unfile(i int32) {
	p := &s.parts[i]
	c := class(p.bytes)
	if p.down != 0 {
		s.parts[p.down].up = p.up
	} else {
		s.heads[c] = p.up
	}
	if p.up != 0 {
		s.parts[p.up].down = p.down
	}
	if s.heads[c] == 0 {
		if s.inner[c/steps] &^= 1 << (c % steps); s.inner[c/steps] == 0 {
			s.outer &^= 1 << (c / steps)
		}
	}
	p.free, p.up, p.down = false, 0, 0
	s.free -= p.bytes
	s.count--
}

// find returns a free part of at least that many bytes, 0 if there is none.
func (s *space) find(bytes int64) int32 {
	c := class(bytes)
	i := s.heads[c]
	for n := 0; i != 0 && n < nearTries; n++ {
		if s.parts[i].bytes >= bytes {
			return i
		}
		i = s.parts[i].up
	}
	if inner := s.inner[c/steps] >> (c%steps + 1) << (c%steps + 1); inner != 0 {
		return s.heads[c/steps*steps+bits.TrailingZeros16(inner)]
	}
	if outer := s.outer >> (c/steps + 1) << (c/steps + 1); outer != 0 {
		o := bits.TrailingZeros64(outer)
		return s.heads[o*steps+bits.TrailingZeros16(s.inner[o])]
	}
	for ; i != 0; i = s.parts[i].up { // the rest of its own class, before it says no
		if s.parts[i].bytes >= bytes {
			return i
		}
	}
	return 0
}

// take returns a part of exactly bytes, a multiple of Alignment above 0; 0 if
// none is free in one piece.
func (s *space) take(bytes int64) int32 {
	i := s.find(bytes)
	if i == 0 {
		return 0
	}
	s.unfile(i)
	s.cut(i, bytes)
	return i
}

// cut frees what a taken part has beyond bytes.
func (s *space) cut(i int32, bytes int64) {
	p := &s.parts[i]
	if p.bytes == bytes {
		return
	}
	rest := part{offset: p.offset + bytes, bytes: p.bytes - bytes, left: i, right: p.right}
	p.bytes = bytes
	r := s.node(rest) // p may have moved
	s.parts[i].right = r
	if rest.right != 0 {
		s.parts[rest.right].left = r
	} else {
		s.last = r
	}
	s.give(r)
}

// give makes a taken part free, and one with its free neighbours.
func (s *space) give(i int32) {
	if right := s.parts[i].right; right != 0 && s.parts[right].free {
		s.unfile(right)
		s.join(i, right)
	}
	if left := s.parts[i].left; left != 0 && s.parts[left].free {
		s.unfile(left)
		s.join(left, i)
		i = left
	}
	s.file(i)
}

// join adds the part at the right to its neighbour i.
func (s *space) join(i, right int32) {
	p, q := &s.parts[i], s.parts[right]
	p.bytes += q.bytes
	p.right = q.right
	if q.right != 0 {
		s.parts[q.right].left = i
	} else {
		s.last = i
	}
	s.forget(right)
}

// resize changes a taken part where it lies: false if what is behind it is not
// free or not enough.
func (s *space) resize(i int32, bytes int64) bool {
	p := &s.parts[i]
	if bytes > p.bytes {
		right := p.right
		if right == 0 || !s.parts[right].free || p.bytes+s.parts[right].bytes < bytes {
			return false
		}
		s.unfile(right)
		s.join(i, right)
	}
	s.cut(i, bytes)
	return true
}

// largest is the size of the largest free part.
func (s *space) largest() int64 {
	if s.outer == 0 {
		return 0
	}
	o := bits.Len64(s.outer) - 1
	most := int64(0)
	for i := s.heads[o*steps+bits.Len16(s.inner[o])-1]; i != 0; i = s.parts[i].up {
		most = max(most, s.parts[i].bytes)
	}
	return most
}

// top is the end of the last taken part.
func (s *space) top() int64 {
	if p := &s.parts[s.last]; p.free {
		return p.offset // only one free part can follow it
	}
	return s.bytes
}

// gaps visits the free parts below end, in no certain order.
func (s *space) gaps(end int64, visit func(offset, bytes int64)) {
	for i := range s.parts {
		if p := &s.parts[i]; p.free && p.offset < end {
			visit(p.offset, min(p.bytes, end-p.offset))
		}
	}
}

// Class counts the parts of an arena whose size has the same power of two.
type Class struct {
	Bytes     int64 `json:"bytes"` // the least size of the class, a power of two
	Taken     int   `json:"taken"` // slots
	TakenSize int64 `json:"taken_bytes"`
	Free      int   `json:"free"` // pieces
	FreeSize  int64 `json:"free_bytes"`
}

// byPower counts all parts.
func (s *space) byPower() []Class {
	var of [64]Class
	for i := range s.parts {
		p := &s.parts[i]
		if p.bytes == 0 {
			continue
		}
		c := &of[bits.Len64(uint64(p.bytes))-1]
		if p.free {
			c.Free++
			c.FreeSize += p.bytes
		} else {
			c.Taken++
			c.TakenSize += p.bytes
		}
	}
	var out []Class
	for e, c := range of {
		if c.Taken+c.Free > 0 {
			c.Bytes = 1 << e
			out = append(out, c)
		}
	}
	return out
}
