"""Writes and reads Parquet with pyarrow and DuckDB for the Go tests.

    peer.py make DIR    writes files as others do, each with what pyarrow reads of it
    peer.py check DIR   reads the files of DIR, and says what each reader makes of them

Values have the form of arrowio/testdata/judge.py.
"""

import datetime as dt
import decimal
import json
import pathlib
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testdata"))
from judge import plain  # noqa: E402

ROWS = 300


def column(make, every=5):
    return [None if i % every == 3 else make(i) for i in range(ROWS)]


def table():
    start = dt.datetime(2001, 1, 1)
    text = column(lambda i: f"t{i % 7}" if i % 2 else f"a text that appears once, number {i}, é")
    return pa.table(
        {
            "i8": pa.array(column(lambda i: i % 200 - 100), pa.int8()),
            "i32": pa.array(column(lambda i: i * 7919 - 100_000), pa.int32()),
            "i64": pa.array(range(0, -ROWS, -1), pa.int64()),
            "u16": pa.array(column(lambda i: 65535 - i), pa.uint16()),
            "u64": pa.array(column(lambda i: 2**64 - 1 - i), pa.uint64()),
            "f32": pa.array(column(lambda i: i / 4), pa.float32()),
            "f64": pa.array(column(lambda i: float("nan") if i % 50 == 1 else -i / 8), pa.float64()),
            "flag": pa.array(column(lambda i: i % 3 == 0), pa.bool_()),
            "text": pa.array(text),
            "bytes": pa.array(column(lambda i: bytes([i % 256]) * (i % 4)), pa.binary()),
            "fixed": pa.array(column(lambda i: bytes([i % 256] * 5)), pa.binary(5)),
            "day": pa.array(column(lambda i: (start + dt.timedelta(days=i)).date()), pa.date32()),
            "ms": pa.array(column(lambda i: i * 997), pa.time32("ms")),
            "us": pa.array(column(lambda i: start + dt.timedelta(minutes=i)), pa.timestamp("us")),
            "utc": pa.array(column(lambda i: i * 10**9), pa.timestamp("us", tz="UTC")),
            "price": pa.array(column(lambda i: decimal.Decimal(i * 37 - 5000).scaleb(-2)), pa.decimal128(12, 2)),
            "big": pa.array(column(lambda i: decimal.Decimal(i * 10**30 - 5)), pa.decimal128(38, 0)),
            "ints": pa.array(column(lambda i: [None if k == 2 else k for k in range(i % 5)]), pa.list_(pa.int32())),
            "deep": pa.array(
                column(lambda i: [{"a": i, "b": [[f"x{k}"] * (k % 3) if k else None for k in range(i % 4)]}, None][: i % 3])
            ),
            "point": pa.array(column(lambda i: {"x": i, "in": {"y": None if i % 4 else "y", "z": [i] * (i % 2)}})),
            "map": pa.array(
                column(lambda i: [(f"k{k}", None if k else i) for k in range(i % 3)]), pa.map_(pa.string(), pa.int64())
            ),
            "none": pa.nulls(ROWS),
        }
    )


def configurations():
    every = {"compression": "zstd", "row_group_size": 100}
    for version in ["1.0", "2.0"]:
        for codec in ["none", "snappy", "gzip", "zstd", "lz4", "brotli"]:
            yield f"v{version} {codec}", dict(every, data_page_version=version, compression=codec)
        yield f"v{version} no dictionaries", dict(every, data_page_version=version, use_dictionary=False)
        yield f"v{version} small pages", dict(every, data_page_version=version, data_page_size=64, write_batch_size=16)
        yield f"v{version} small dictionaries", dict(
            every, data_page_version=version, dictionary_pagesize_limit=64, write_batch_size=16, row_group_size=ROWS
        )
        delta = {"i32": "DELTA_BINARY_PACKED", "i64": "DELTA_BINARY_PACKED", "text": "DELTA_BYTE_ARRAY", "u64": "DELTA_BINARY_PACKED"}
        delta |= {"bytes": "DELTA_LENGTH_BYTE_ARRAY", "fixed": "DELTA_BYTE_ARRAY", "flag": "RLE"}
        yield f"v{version} delta", dict(every, data_page_version=version, use_dictionary=False, column_encoding=delta)
        split = dict.fromkeys(["f32", "f64", "i32", "i64", "fixed"], "BYTE_STREAM_SPLIT")
        yield f"v{version} split", dict(every, data_page_version=version, use_dictionary=False, column_encoding=split)
    yield "no Arrow schema", dict(every, store_schema=False)
    yield "int96", dict(every, use_deprecated_int96_timestamps=True)
    yield "page index, checksums", dict(every, write_page_index=True, write_page_checksum=True)
    yield "two levels of lists", dict(every, use_compliant_nested_type=False)
    yield "format 1.0", dict(every, version="1.0", store_schema=False)
    yield "decimals as integers", dict(every, store_decimal_as_integer=True)


def make(folder):
    made = {}
    for name, options in configurations():
        pq.write_table(table(), folder / f"{name}.parquet", **options)
        made[name] = None
    con = duckdb.connect()
    con.register("t", table().drop_columns(["none", "fixed"]))
    for codec in ["uncompressed", "snappy", "zstd", "gzip", "brotli", "lz4_raw"]:
        for version in ["v1", "v2"]:
            name = f"duckdb {codec} {version}"
            con.execute(f"copy t to '{folder / name}.parquet' (format parquet, codec '{codec}', parquet_version '{version}', row_group_size 2048)")
    con.execute(f"""copy (select i, case when i % 3 = 0 then null else i::hugeint end h, (i % 256)::utinyint u, interval (i) day iv, uuid() id,
        ['a', 'b', 'c'][i % 3 + 1]::enum('a', 'b', 'c') e, json_object('k', i) j, date '2001-01-01' + i::int d, time '01:02:03' t, (i % 7)::varchar w
        from range(50, 5000) r(i)) to '{folder / "duckdb types"}.parquet' (format parquet)""")
    for path in folder.glob("*.parquet"):
        t = pq.read_table(path)
        out = {"rows": t.num_rows, "columns": {}}
        for field, c in zip(t.schema, t.columns):
            out["columns"][field.name] = {"type": str(field.type), "values": [v for chunk in c.chunks for v in plain(chunk)]}
        path.with_suffix(".json").write_text(json.dumps(out))


def same(a, b):
    """Equal, NaN to itself."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, list) and isinstance(b, dict):  # a map
        return same([list(p) for p in a], [list(p) for p in b.items()])
    return a == b or a != a and b != b


def check(folder):
    answers = {}
    con = duckdb.connect()
    con.execute("set timezone = 'UTC'")
    for path in sorted(folder.glob("*.parquet")):
        want = json.loads(path.with_suffix(".json").read_text())
        answer = {"pyarrow": "", "duckdb": ""}
        try:
            f = pq.ParquetFile(path, page_checksum_verification=True)
            t = f.read()
            t.validate(full=True)
            for c, values, dt_name in zip(t.columns, want["values"], want["types"]):
                if [v for chunk in c.chunks for v in plain(chunk)] != values:
                    answer["pyarrow"] = f"read as {c.type}"
        except Exception as e:
            answer["pyarrow"] = f"{type(e).__name__}: {e}"
        try:
            got = con.execute(f"select * from read_parquet('{path}')").to_arrow_table()
            mine = pq.ParquetFile(path).read()
            for a, b in zip(mine.columns, got.columns):
                # DuckDB's types are others, and Python has no values for the ends of many.
                if len(a) != len(b) or a.type.id != pa.lib.Type_NA and a.is_null().to_pylist() != b.is_null().to_pylist():
                    answer["duckdb"] = f"{len(b)} values, {b.null_count} null; pyarrow {len(a)}, {a.null_count}"
                    continue
                if pa.types.is_timestamp(a.type) and a.type.unit == "ns":  # DuckDB has microseconds
                    a, b = (x.cast(pa.timestamp("us", a.type.tz), safe=False) for x in (a, b))
                if want.get("exact") and not same(a.to_pylist(), b.to_pylist()):
                    answer["duckdb"] = f"read as {b.type}: {b.to_pylist()[:3]}, pyarrow {a.to_pylist()[:3]}"
        except Exception as e:
            answer["duckdb"] = f"{type(e).__name__}: {e}"
        answers[path.stem] = answer
    print(json.dumps(answers))


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](pathlib.Path(sys.argv[2]))
