"""Measures pyarrow's writing and reading of Parquet, as the program that starts it asks, a JSON object a line."""

import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

tables, files = {}, {}
OPTIONS = dict(compression="zstd", compression_level=1, row_group_size=1 << 30)


def write(name):
    out = pa.BufferOutputStream()
    pq.write_table(tables[name], out, **OPTIONS)
    return out.getvalue()


for line in sys.stdin:
    ask = json.loads(line)
    name, do = ask["name"], ask["do"]
    pa.set_cpu_count(2 if ask["threads"] else 1)
    wall, cpu, size = time.perf_counter(), time.process_time(), 0
    if do == "load":
        with pa.ipc.open_file(f"{sys.argv[1]}/{name}.arrow") as f:
            tables[name] = f.read_all()
        files[name] = write(name)
    elif do == "file":
        size = files[name].size
        with open(ask["path"], "wb") as out:
            out.write(files[name])
    elif do == "write":
        size = write(name).size
    else:
        pq.read_table(pa.BufferReader(files[name]), use_threads=ask["threads"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": size}), flush=True)
