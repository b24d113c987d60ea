package parquet

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// compact reads Thrift's compact protocol from memory. It sizes nothing by what
// the input promises: the general decoder of the library allocates a list before
// it has seen an element, so that a footer of 50 bytes can ask for terabytes.
// After a fault everything reads as zero; err says what it was.
//
// https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
type compact struct {
	b     []byte
	depth int
	err   error

	// The field that next found.
	id  int16
	typ byte
}

const (
	thriftTrue   = 1
	thriftFalse  = 2
	thriftByte   = 3
	thriftI16    = 4
	thriftI32    = 5
	thriftI64    = 6
	thriftDouble = 7
	thriftBinary = 8
	thriftList   = 9
	thriftSet    = 10
	thriftMap    = 11
	thriftStruct = 12

	maxThriftDepth = 16 // the deepest path in a footer has 8
)

// errShort means: the input ends within a structure.
var errShort = errors.New("ends early")

func (c *compact) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.b = nil
}

func (c *compact) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail(errShort)
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *compact) byte() byte {
	if len(c.b) == 0 {
		c.fail(errShort)
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *compact) i64() int64 {
	if c.typ < thriftI16 || c.typ > thriftI64 {
		c.fail(fmt.Errorf("field %d of type %d, want an integer", c.id, c.typ))
		return 0
	}
	return c.zigzag()
}

func (c *compact) zigzag() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (c *compact) i32() int32 {
	v := c.i64()
	if int64(int32(v)) != v {
		c.fail(fmt.Errorf("field %d is %d, which has more than 32 bits", c.id, v))
	}
	return int32(v)
}

func (c *compact) i8() int8 {
	if c.typ != thriftByte {
		c.fail(fmt.Errorf("field %d of type %d, want a byte", c.id, c.typ))
		return 0
	}
	return int8(c.byte())
}

func (c *compact) bool() bool {
	if c.typ != thriftTrue && c.typ != thriftFalse {
		c.fail(fmt.Errorf("field %d of type %d, want a boolean", c.id, c.typ))
	}
	return c.typ == thriftTrue
}

// bytes aliases the input.
func (c *compact) bytes() []byte {
	if c.typ != thriftBinary {
		c.fail(fmt.Errorf("field %d of type %d, want bytes", c.id, c.typ))
		return nil
	}
	n := c.uvarint()
	if n > uint64(len(c.b)) {
		c.fail(errShort)
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *compact) string() string { return string(c.bytes()) }

// structure calls field for each field of the structure that comes next, until its
// end. field reads the value or leaves it to be skipped by calling skip.
func (c *compact) structure(field func()) {
	if c.depth++; c.depth > maxThriftDepth {
		c.fail(errors.New("nested too deep"))
	}
	last := int16(0)
	for c.err == nil {
		head := c.byte()
		if head == 0 || c.err != nil {
			break
		}
		if delta := head >> 4; delta != 0 {
			last += int16(delta)
		} else {
			last = int16(c.zigzag())
		}
		c.id, c.typ = last, head&15
		field()
	}
	c.depth--
}

// nested is structure for a field that must be one.
func (c *compact) nested(field func()) {
	if c.typ != thriftStruct {
		c.fail(fmt.Errorf("field %d of type %d, want a structure", c.id, c.typ))
		return
	}
	c.structure(field)
}

// list calls item once for each element, with typ set to the elements' type.
func (c *compact) list(item func()) {
	if c.typ != thriftList && c.typ != thriftSet {
		c.fail(fmt.Errorf("field %d of type %d, want a list", c.id, c.typ))
		return
	}
	head := c.byte()
	n, typ := uint64(head>>4), head&15
	if n == 15 {
		n = c.uvarint()
	}
	if n > uint64(len(c.b)) { // an element has a byte at least
		c.fail(errShort)
		return
	}
	if c.depth++; c.depth > maxThriftDepth {
		c.fail(errors.New("nested too deep"))
	}
	for ; n > 0 && c.err == nil; n-- {
		c.typ = typ
		item()
	}
	c.depth--
}

// skip passes over the value of the field that next found.
func (c *compact) skip() {
	switch c.typ {
	case thriftTrue, thriftFalse: // the value is the type
	default:
		c.skipValue()
	}
}

func (c *compact) skipValue() {
	switch c.typ {
	case thriftTrue, thriftFalse, thriftByte: // in a list a boolean has its byte
		c.byte()
	case thriftI16, thriftI32, thriftI64:
		c.uvarint()
	case thriftDouble:
		if len(c.b) < 8 {
			c.fail(errShort)
			return
		}
		c.b = c.b[8:]
	case thriftBinary:
		c.bytes()
	case thriftList, thriftSet:
		c.list(c.skipValue)
	case thriftMap:
		n := c.uvarint()
		if n == 0 {
			return
		}
		kinds := c.byte()
		if n > uint64(len(c.b)) {
			c.fail(errShort)
			return
		}
		for ; n > 0 && c.err == nil; n-- {
			c.typ = kinds >> 4
			c.skipValue()
			c.typ = kinds & 15
			c.skipValue()
		}
	case thriftStruct:
		c.structure(c.skip)
	default:
		c.fail(fmt.Errorf("field %d of unknown type %d", c.id, c.typ))
	}
}
