// Package parquet stores Arrow record batches as Parquet files and reads them
// back, column by column, through github.com/parquet-go/parquet-go.
//
// One batch becomes one row group, compressed with zstd, and is read back as one
// batch: memory in use is bounded by the largest row group. The Arrow schema is
// stored in the file's metadata as other Arrow implementations do
// ("ARROW:schema"), so that a round trip gives the same schema, metadata
// included, and pyarrow reads the same types.
//
// Types: bool, signed and unsigned integers of 8 to 64 bits, float32 and float64,
// utf8 and large_utf8, binary and large_binary, date32, timestamps in ms, us and
// ns, and dictionaries of utf8 or large_utf8. Anything else is an
// *UnsupportedError naming the column. A dictionary is rebuilt when it is read,
// in the order in which values first appear in the row group: the values are the
// same, the indices may not be.
package parquet
