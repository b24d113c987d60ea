// Package parquet stores Arrow record batches as Parquet files and reads files of
// any writer, column by column and page by page. docs/PARQUET.md has the types, the
// limits and what is guaranteed.
//
// One batch becomes one row group and is read back as one batch, bit for bit: the
// Arrow schema is stored in the file's metadata as other Arrow implementations do
// ("ARROW:schema"), so that pyarrow reads the same types. What Parquet cannot hold
// is an *UnsupportedError or a *ValueError.
//
// Reading trusts nothing: what is wrong with a file is an error that wraps
// arrowio.ErrCorrupt, and a batch takes no more memory than ScanOptions.MaxBytes.
//
// The footer's structures, the run-length, delta and bit-packing kernels are those
// of github.com/parquet-go/parquet-go; pages are made and read here (docs/decisions,
// 30).
package parquet
