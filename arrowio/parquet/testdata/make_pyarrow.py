"""Makes pyarrow.parquet: what pyarrow writes by default, with zstd, for the
types that Stokehold reads, in two row groups. Run in this directory."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq

rows = 300


def col(make):
    return [None if i % 5 == 3 else make(i) for i in range(rows)]


start = dt.datetime(2001, 1, 1)
table = pa.table(
    {
        "i16": pa.array(col(lambda i: i - 100), pa.int16()),
        "i64": pa.array(range(rows), pa.int64()),
        "u32": pa.array(col(lambda i: 2**32 - 1 - i), pa.uint32()),
        "f32": pa.array(col(lambda i: i / 4), pa.float32()),
        "f64": pa.array(col(lambda i: i / 8), pa.float64()),
        "flag": pa.array(col(lambda i: i % 3 == 0), pa.bool_()),
        "text": pa.array(col(lambda i: f"t{i % 7}"), pa.string()),
        "large": pa.array(col(lambda i: f"unique value {i}"), pa.large_string()),
        "code": pa.array(col(lambda i: f"c{i % 4}")).dictionary_encode(),
        "us": pa.array(col(lambda i: start + dt.timedelta(minutes=i)), pa.timestamp("us")),
        "ns": pa.array(col(lambda i: i * 10**9), pa.timestamp("ns", tz="UTC")),
        "day": pa.array(col(lambda i: (start + dt.timedelta(days=i)).date()), pa.date32()),
    },
    metadata={"origin": "pyarrow"},
)
table = table.set_column(1, pa.field("i64", pa.int64(), nullable=False), table["i64"])
pq.write_table(table, "pyarrow.parquet", compression="zstd", row_group_size=200)
