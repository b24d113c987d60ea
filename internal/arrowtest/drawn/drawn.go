// Package drawn draws record batches of any schema for property tests. It is apart from
// arrowtest, which a public conformance suite needs, so that nobody who runs that needs
// rapid.
package drawn

import (
	"math/rand/v2"

	"github.com/apache/arrow-go/v18/arrow"
	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/internal/arrowtest"
)

// Type draws a type nested to a depth.
func Type(t *rapid.T, depth int) arrow.DataType {
	if depth > 0 && rapid.IntRange(0, 2).Draw(t, "nested") > 0 {
		elem := Type(t, depth-1)
		if rapid.IntRange(0, 3).Draw(t, "struct") == 0 {
			fields := make([]arrow.Field, rapid.IntRange(0, 3).Draw(t, "fields"))
			for i := range fields {
				fields[i] = Field(t, depth-1)
			}
			return arrow.StructOf(fields...)
		}
		return rapid.SampledFrom(arrowtest.Nests(elem)).Draw(t, "nest")
	}
	if rapid.IntRange(0, 9).Draw(t, "extension") == 0 {
		return rapid.SampledFrom(arrowtest.Canonical()).Draw(t, "canonical")
	}
	return rapid.SampledFrom(arrowtest.Leaves()).Draw(t, "leaf")
}

// Field draws a field, of an extension type that nobody knows now and then.
func Field(t *rapid.T, depth int) arrow.Field {
	if rapid.IntRange(0, 15).Draw(t, "unknown") == 0 {
		return rapid.SampledFrom(arrowtest.Unknown()).Draw(t, "extension")
	}
	f := arrow.Field{Name: rapid.SampledFrom([]string{"a", "b", "värde", "", "a b", "長"}).Draw(t, "name"), Type: Type(t, depth)}
	f.Nullable = onlyNull(f.Type) || rapid.Bool().Draw(t, "nullable")
	f.Metadata = Metadata(t)
	return f
}

// onlyNull reports whether every value of a type is null.
func onlyNull(dt arrow.DataType) bool {
	switch t := dt.(type) {
	case *arrow.DictionaryType:
		return onlyNull(t.ValueType)
	case *arrow.RunEndEncodedType:
		return onlyNull(t.Encoded())
	}
	return dt.ID() == arrow.NULL
}

// Metadata draws metadata, in which text is not always UTF-8.
func Metadata(t *rapid.T) arrow.Metadata {
	switch rapid.IntRange(0, 3).Draw(t, "metadata") {
	case 0:
		return arrow.NewMetadata([]string{"z", "a", ""}, []string{"1", "", "\xff\x00"})
	case 1:
		return arrow.NewMetadata([]string{"unit"}, []string{"m"})
	}
	return arrow.Metadata{}
}

// Batch draws a schema and fills it as Rows does.
func Batch(t *rapid.T) arrow.RecordBatch {
	fields := make([]arrow.Field, rapid.IntRange(0, 4).Draw(t, "columns"))
	for i := range fields {
		fields[i] = Field(t, 3)
	}
	return Rows(t, fields)
}

// Rows draws a batch with the fields, sometimes cut from one with more rows, so
// that its arrays have offsets.
func Rows(t *rapid.T, fields []arrow.Field) arrow.RecordBatch {
	md := Metadata(t)
	rows := rapid.SampledFrom([]int{0, 1, 2, 7, 8, 9, 40, 65}).Draw(t, "rows")
	g := arrowtest.NewFiller(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)))
	before, after := 0, 0
	if rapid.Bool().Draw(t, "sliced") {
		before, after = rapid.IntRange(0, 9).Draw(t, "before"), rapid.IntRange(0, 9).Draw(t, "after")
	}
	whole := g.Batch(arrow.NewSchema(fields, &md), before+rows+after)
	defer whole.Release()
	return whole.NewSlice(int64(before), int64(before+rows))
}
