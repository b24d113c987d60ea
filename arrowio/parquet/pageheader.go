package parquet

import (
	"encoding/binary"

	"github.com/parquet-go/parquet-go/format"
)

// append appends the header in Thrift's compact protocol. The library's encoder
// allocates a dozen times for it, for each page.
func (h *pageHeader) append(b []byte) []byte {
	i32 := func(head byte, v int32) {
		b = append(b, head<<4|thriftI32)
		b = binary.AppendVarint(b, int64(v))
	}
	i32(1, int32(h.kind))
	i32(1, h.uncompressed)
	i32(1, h.compressed)
	if h.kind == format.DictionaryPage {
		b = append(b, 4<<4|thriftStruct)
		i32(1, h.values)
		i32(1, int32(h.encoding))
		return append(b, 0, 0)
	}
	b = append(b, 5<<4|thriftStruct)
	i32(1, h.values)
	i32(1, h.nulls)
	i32(1, h.rows)
	i32(1, int32(h.encoding))
	i32(1, h.defBytes)
	i32(1, h.repBytes)
	if h.plainValues {
		b = append(b, 1<<4|thriftFalse)
	} else {
		b = append(b, 1<<4|thriftTrue)
	}
	return append(b, 0, 0)
}
