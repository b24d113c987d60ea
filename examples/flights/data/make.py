"""Makes flights-2001.parquet: every 10th row of vega-datasets' flights-3m.parquet, in date order.

    npm pack vega-datasets@3.2.1 && tar xzf vega-datasets-3.2.1.tgz
    pip install pyarrow
    python make.py package/data/flights-3m.parquet

The sort is stable, so that rows of the same minute keep the source's order and
the result's rows are the same wherever it is made. The file's own bytes depend
on the version of pyarrow (README.md names the one used).
"""

import hashlib
import pathlib
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("date", pa.timestamp("us"), nullable=False),
        pa.field("delay", pa.int64(), nullable=False),
        pa.field("distance", pa.int64(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("destination", pa.string(), nullable=False),
    ]
)


def main(source: str) -> None:
    table = pq.read_table(source, columns=SCHEMA.names)
    # sort_indices is stable for one key only when the row number is the second.
    keyed = pa.table({"date": table["date"], "row": pa.array(range(table.num_rows))})
    order = pc.sort_indices(keyed, sort_keys=[("date", "ascending"), ("row", "ascending")])
    table = table.take(order[::10]).cast(SCHEMA)
    out = pathlib.Path(__file__).with_name("flights-2001.parquet")
    pq.write_table(
        table,
        out,
        compression="zstd",
        compression_level=19,
        store_schema=False,
        row_group_size=50_000,
        use_dictionary=["origin", "destination", "distance", "delay"],
        column_encoding={"date": "DELTA_BINARY_PACKED"},
    )
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{out.name}: {table.num_rows} rows, {out.stat().st_size} bytes, sha256 {digest}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
