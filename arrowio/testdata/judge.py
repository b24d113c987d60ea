"""Judges Arrow frames for the Go tests: pyarrow reads one where it lies, says
whether it is valid, what its values are, and writes it again.

Requests on standard input: u32 length, JSON {"length": n, "values": text or null}.
The frame is the first n bytes of the file named by the only argument. Answers on
standard output: u32 length, JSON, u32 length, the batch as pyarrow writes it.
The request {"make": name} asks for a stream that pyarrow makes, see foreign.
"""

import faulthandler
import json
import mmap
import struct
import sys
import traceback

import pyarrow as pa

T = pa.types


def fixed(array, code):
    """The values of a type of fixed width, of its bytes."""
    width = struct.calcsize("<" + code)
    data = array.buffers()[1]
    raw = b"" if data is None else data.to_pybytes()
    parts = [struct.unpack_from("<" + code, raw, (array.offset + i) * width) for i in range(len(array))]
    return [str(p[0]) if len(p) == 1 else [str(x) for x in p] for p in parts]


INTEGERS = {
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    "halffloat": "H", "float": "I", "double": "Q", "month_interval": "i", "day_time_interval": "ii",
    "month_day_nano_interval": "iiq",
}  # fmt: skip


def code_of(t):
    if str(t) in INTEGERS:
        return INTEGERS[str(t)]
    if T.is_date32(t) or T.is_time32(t):
        return "i"
    if T.is_date64(t) or T.is_time64(t) or T.is_timestamp(t) or T.is_duration(t):
        return "q"
    return None


def plain(array):
    t = array.type
    if isinstance(t, pa.BaseExtensionType):
        return plain(array.storage)
    if T.is_null(t) or len(array) == 0:
        return [None] * len(array)
    if T.is_union(t):
        # The properties type_codes and offsets of a sliced union forget the slice.
        raw, start, n = array.buffers(), array.offset, len(array)
        codes = struct.unpack_from(f"<{n}b", raw[1], start)
        at = struct.unpack_from(f"<{n}i", raw[2], 4 * start) if t.mode == "dense" else range(n)
        children = {code: plain(array.field(i)) for i, code in enumerate(t.type_codes)}
        return [[str(c), children[c][i]] for c, i in zip(codes, at)]
    if T.is_run_end_encoded(t):
        values, out, run = plain(array.values), [], 0
        ends = [e.as_py() for e in array.run_ends]
        for i in range(len(array)):
            while ends[run] <= array.offset + i:
                run += 1
            out.append(values[run])
        return out
    # is_valid() ends the process on a dictionary of nulls.
    bitmap = array.buffers()[0]
    bits = b"" if bitmap is None else bitmap.to_pybytes()
    at = range(array.offset, array.offset + len(array))
    valid = [not bits or bits[i // 8] >> (i % 8) & 1 == 1 for i in at]
    if T.is_dictionary(t):
        values = plain(array.dictionary)
        out = [values[i.as_py()] if ok else None for i, ok in zip(array.indices, valid)]
    elif T.is_struct(t):
        fields = [plain(array.field(i)) for i in range(t.num_fields)]
        out = [[f[i] for f in fields] for i in range(len(array))]
    elif T.is_list(t) or T.is_large_list(t) or T.is_list_view(t) or T.is_large_list_view(t) or T.is_fixed_size_list(t) or T.is_map(t):
        out = [plain(array[i].values) if ok else None for i, ok in enumerate(valid)]
    elif T.is_boolean(t):
        out = [v.as_py() for v in array]
    elif T.is_decimal(t):
        out = []
        for v, ok in zip(array, valid):
            if ok:
                sign, digits, _ = v.as_py().as_tuple()
                number = int("".join(map(str, digits)))
                v = str(-number if sign else number)
            out.append(v)
    elif code_of(t) is not None:
        out = fixed(array, code_of(t))
    else:  # text and bytes of all kinds
        out = []
        for v, ok in zip(array, valid):
            data = v.as_buffer().to_pybytes() if ok else b""
            out.append(data.hex())
    return [v if ok else None for v, ok in zip(out, valid)]


def buffers(array):
    yield from array.buffers()
    if T.is_dictionary(array.type):
        yield from buffers(array.dictionary)


def judge(request, memory, answer):
    """What could be said before something failed is in answer."""
    frame = pa.py_buffer(memory).slice(0, request["length"])
    reader = pa.ipc.open_stream(frame)
    batch, custom = reader.read_next_batch_with_custom_metadata()
    answer["schema"] = str(reader.schema)
    try:
        reader.read_next_batch()
        raise ValueError("more than one batch")
    except StopIteration:
        pass
    batch.validate(full=True)
    answer["valid"] = True
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        writer.write_batch(batch, custom_metadata=custom)
    answer["written"] = sink.getvalue().to_pybytes()
    low, high = frame.address, frame.address + frame.size
    answer["outside"] = sum(
        b.size for c in batch.columns for b in buffers(c)
        if b is not None and b.size and not (low <= b.address and b.address + b.size <= high)
    )  # fmt: skip
    if request["values"] is not None:
        have, want = [plain(c) for c in batch.columns], json.loads(request["values"])
        if have != want:
            raise ValueError(f"values {json.dumps(have)[:2000]}")


def written(batches, **options):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return batches[-1], sink.getvalue().to_pybytes()


def words(*values):
    return pa.RecordBatch.from_arrays([pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(values))], ["word"])


def foreign():
    """Streams by name, each with the batch it ends with; made when asked for."""
    ints = pa.array([1, None, 3, 4, 5], pa.int64())
    text = pa.array(["a", "bé", None, "", "a longer text than twelve bytes"])
    deep = pa.array([[{"k": 1, "v": ["x", None]}], None, [], [{"k": None, "v": None}, {"k": 2, "v": []}], []])
    batch = pa.RecordBatch.from_arrays(
        [
            ints, text, text.cast(pa.large_string()), text.cast(pa.string_view()), text.dictionary_encode(), deep,
            pa.array([b"x", None, b"", b"yz", b"q"], pa.binary_view()),
            pa.array([[1, 2], None, [], [3], [4, 5]], pa.list_view(pa.int16())),
            pa.array([[(1, "a")], None, [], [(2, None), (3, "c")], []], pa.map_(pa.int32(), pa.string())),
            pa.RunEndEncodedArray.from_arrays(pa.array([2, 5], pa.int32()), pa.array(["r", None])),
            pa.UnionArray.from_dense(pa.array([0, 1, 0, 0, 1], pa.int8()), pa.array([0, 0, 1, 2, 1], pa.int32()), [ints, text]),
            pa.UnionArray.from_sparse(pa.array([0, 1, 0, 0, 1], pa.int8()), [ints, text]),
            pa.array([None] * 5), pa.array([1.5, None, 2, 3, 4], pa.float16()),
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(range(16))] * 5, pa.binary(16))),
            pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [2]), pa.array([[1, 2]] * 5, pa.list_(pa.float32(), 2))),
            pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1"] * 5)),
        ],
        [f"c{i}" for i in range(17)],
    ).replace_schema_metadata({"b": "1", "a": "2"})  # fmt: skip
    streams = {
        "default": lambda: written([batch]),
        "sliced": lambda: written([batch.slice(1, 3)]),
        "no rows": lambda: written([batch.slice(0, 0)]),
        "no columns": lambda: written([pa.RecordBatch.from_arrays([], [])]),
        "empty list of size 0": lambda: written([pa.RecordBatch.from_arrays([pa.array([[], []], pa.list_(pa.int8(), 0))], ["x"])]),
        "lz4": lambda: written([batch], compression="lz4"),
        "zstd": lambda: written([batch], compression="zstd"),
        "metadata V4": lambda: written([batch.select([0, 1])], metadata_version=pa.ipc.MetadataVersion.V4),
        "before 0.15": lambda: written([batch.select([0, 1])], use_legacy_format=True),
        "dictionary delta": lambda: written([words("a", "b"), words("a", "b", "c")], emit_dictionary_deltas=True),
        "dictionary replacement": lambda: written([words("a", "b"), words("c", "d")]),
        "two batches": lambda: written([batch, batch]),
    }  # fmt: skip
    return streams


def make(name):
    batch, out = foreign()[name]()
    return {"values": json.dumps([plain(c) for c in batch.columns], separators=(",", ":")), "written": out}


def main():
    faulthandler.enable()
    with open(sys.argv[1], "rb") as f:
        memory = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    stdout.write(struct.pack("<I", len(pa.__version__)) + pa.__version__.encode())
    stdout.flush()
    while head := stdin.read(4):
        request = json.loads(stdin.read(struct.unpack("<I", head)[0]))
        answer = {}
        try:
            if "make" in request:
                answer = make(request["make"])
            else:
                judge(request, memory, answer)
        except Exception as e:  # the judgement
            answer["error"] = f"{type(e).__name__}: {e}"
            answer["traceback"] = traceback.format_exc()
        out = answer.pop("written", b"")
        data = json.dumps(answer).encode()
        stdout.write(struct.pack("<I", len(data)) + data + struct.pack("<I", len(out)) + out)
        stdout.flush()


if __name__ == "__main__":
    main()
