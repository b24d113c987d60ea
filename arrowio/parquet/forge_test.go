package parquet_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/parquet-go/parquet-go/encoding/thrift"
	"github.com/parquet-go/parquet-go/format"
)

// forged is a file of one row group put together by hand, so that it can lie.
type forged struct {
	schema []format.SchemaElement // without the root
	rows   int64
	chunks []forgedChunk
	edit   func(*format.FileMetaData)
}

type forgedChunk struct {
	meta  format.ColumnMetaData
	pages []forgedPage
}

type forgedPage struct {
	header format.PageHeader
	body   []byte
}

func leafOf(name string, t format.Type, r format.FieldRepetitionType) format.SchemaElement {
	return format.SchemaElement{Name: name, Type: thrift.New(t), RepetitionType: thrift.New(r)}
}

func groupOf(name string, r format.FieldRepetitionType, children int32) format.SchemaElement {
	return format.SchemaElement{Name: name, RepetitionType: thrift.New(r), NumChildren: thrift.New(children)}
}

// v2 is a data page that is not compressed; its levels are as given, encoded.
func v2(values int32, how format.Encoding, rep, def, body []byte) forgedPage {
	all := append(append(append([]byte{}, rep...), def...), body...)
	return forgedPage{body: all, header: format.PageHeader{Type: format.DataPageV2, UncompressedPageSize: int32(len(all)), CompressedPageSize: int32(len(all)),
		DataPageHeaderV2: thrift.New(format.DataPageHeaderV2{NumValues: values, NumRows: values, Encoding: how, IsCompressed: thrift.New(false),
			DefinitionLevelsByteLength: int32(len(def)), RepetitionLevelsByteLength: int32(len(rep))})}}
}

func dictPage(values int32, body []byte) forgedPage {
	return forgedPage{body: body, header: format.PageHeader{Type: format.DictionaryPage, UncompressedPageSize: int32(len(body)), CompressedPageSize: int32(len(body)),
		DictionaryPageHeader: thrift.New(format.DictionaryPageHeader{NumValues: values, Encoding: format.Plain})}}
}

// run is levels or indices of up to 8 bits: one value many times.
func run(n uint64, value byte) []byte {
	return append(binary.AppendUvarint(nil, n<<1), value)
}

func column(t format.Type, values int64, pages ...forgedPage) forgedChunk {
	return forgedChunk{meta: format.ColumnMetaData{Type: t, NumValues: values, PathInSchema: []string{"x"}}, pages: pages}
}

func (f forged) bytes(tb testing.TB) []byte {
	tb.Helper()
	var protocol thrift.CompactProtocol
	marshal := func(v any) []byte {
		b, err := thrift.Marshal(&protocol, v)
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}
	var out bytes.Buffer
	out.WriteString("PAR1")
	roots := int32(0)
	for i := 0; i < len(f.schema); roots++ {
		var skip func(i int) int
		skip = func(i int) int {
			n := f.schema[i].NumChildren.V
			i++
			for range n {
				i = skip(i)
			}
			return i
		}
		i = skip(i)
	}
	meta := format.FileMetaData{Version: 2, NumRows: f.rows, Schema: append([]format.SchemaElement{{Name: "schema", NumChildren: thrift.New(roots)}}, f.schema...)}
	group := format.RowGroup{NumRows: f.rows}
	for _, c := range f.chunks {
		m := c.meta
		start := int64(out.Len())
		for _, p := range c.pages {
			if p.header.Type == format.DictionaryPage && m.DictionaryPageOffset == 0 {
				m.DictionaryPageOffset = int64(out.Len())
			} else if m.DataPageOffset == 0 {
				m.DataPageOffset = int64(out.Len())
			}
			out.Write(marshal(&p.header))
			out.Write(p.body)
		}
		m.TotalCompressedSize = int64(out.Len()) - start
		group.Columns = append(group.Columns, format.ColumnChunk{MetaData: m})
	}
	meta.RowGroups = []format.RowGroup{group}
	if f.edit != nil {
		f.edit(&meta)
	}
	footer := marshal(&meta)
	out.Write(footer)
	out.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(footer))))
	out.WriteString("PAR1")
	return out.Bytes()
}
