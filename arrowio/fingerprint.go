package arrowio

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
)

// Fingerprint identifies a schema: 32 hexadecimal digits, the first 16 bytes of
// the SHA-256 of its canonical form. Two schemas have the same fingerprint if
// and only if they have the same fields in the same order (name, type with all
// its parameters, nullability, metadata) and the same schema metadata, where
// the order of metadata keys does not matter. An extension type counts as its
// storage type with metadata that names it, which is what a process sees that
// does not know it. It depends on nothing else, so it is the same in every
// process and version; a golden test holds that.
func Fingerprint(schema *arrow.Schema) string {
	c := canon{h: sha256.New()}
	c.str("stokehold.schema.1")
	c.num(uint64(schema.NumFields()))
	for _, f := range schema.Fields() {
		c.field(f)
	}
	c.metadata(schema.Metadata())
	return hex.EncodeToString(c.h.Sum(nil)[:16])
}

// canon hashes an unambiguous serialisation: every string has its length before
// it, every list its count. The types' own Fingerprint method was rejected: it
// is empty for extension types, leaves out nested field metadata, and promises
// nothing across versions of the library.
type canon struct{ h hash.Hash }

func (c canon) num(n uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], n)
	c.h.Write(b[:])
}

func (c canon) str(s string) {
	c.num(uint64(len(s)))
	c.h.Write([]byte(s))
}

func (c canon) flag(b bool) {
	if b {
		c.num(1)
		return
	}
	c.num(0)
}

func (c canon) metadata(md arrow.Metadata) {
	type pair struct{ k, v string }
	keys, values := md.Keys(), md.Values()
	pairs := make([]pair, len(keys))
	for i := range keys {
		pairs[i] = pair{keys[i], values[i]}
	}
	slices.SortStableFunc(pairs, func(a, b pair) int {
		switch {
		case a.k < b.k:
			return -1
		case a.k > b.k:
			return 1
		}
		return 0
	})
	c.num(uint64(len(pairs)))
	for _, p := range pairs {
		c.str(p.k)
		c.str(p.v)
	}
}

func (c canon) field(f arrow.Field) {
	if ext, ok := f.Type.(arrow.ExtensionType); ok {
		f = storageField(f, ext)
	}
	c.str(f.Name)
	c.flag(f.Nullable)
	c.dataType(f.Type)
	c.metadata(f.Metadata)
}

func (c canon) dataType(dt arrow.DataType) {
	c.str(dt.Name())
	switch t := dt.(type) {
	case *arrow.TimestampType:
		c.str(t.Unit.String())
		c.str(t.TimeZone)
	case *arrow.Time32Type:
		c.str(t.Unit.String())
	case *arrow.Time64Type:
		c.str(t.Unit.String())
	case *arrow.DurationType:
		c.str(t.Unit.String())
	case *arrow.FixedSizeBinaryType:
		c.num(uint64(t.ByteWidth))
	case arrow.DecimalType:
		c.num(uint64(t.GetPrecision()))
		c.num(uint64(t.GetScale()))
	case *arrow.DictionaryType:
		c.flag(t.Ordered)
		c.dataType(t.IndexType)
		c.dataType(t.ValueType)
	case *arrow.FixedSizeListType:
		c.num(uint64(t.Len()))
		c.field(t.ElemField())
	case *arrow.MapType:
		c.flag(t.KeysSorted)
		c.field(t.KeyField())
		c.field(t.ItemField())
	case arrow.ListLikeType:
		c.field(t.ElemField())
	case *arrow.StructType:
		c.num(uint64(t.NumFields()))
		for _, f := range t.Fields() {
			c.field(f)
		}
	case arrow.UnionType:
		c.str(fmt.Sprint(t.Mode()))
		for _, code := range t.TypeCodes() {
			c.num(uint64(code))
		}
		c.num(uint64(t.NumFields()))
		for _, f := range t.Fields() {
			c.field(f)
		}
	case *arrow.RunEndEncodedType:
		for _, f := range t.Fields() {
			c.field(f)
		}
	case arrow.ExtensionType:
		c.str(t.ExtensionName())
		c.str(t.Serialize())
		c.dataType(t.StorageType())
	}
}
