"""Frames: laid out without copies, aligned, readable in place."""

import pyarrow as pa
import pytest

from stokehold import frame, memory
from stokehold.frame import Frame
from stokehold.memory import Mapping

BATCH = pa.record_batch(
    {
        "i": pa.array(range(100), pa.int64()),
        "bits": pa.array([True, None, False, True] * 25),
        "text": pa.array(["a", None, "ccc", ""] * 25),
        "view": pa.array(["longer than twelve bytes", None, "c", ""] * 25, pa.string_view()),
        "word": pa.array(["u", "v", None, "u"] * 25).dictionary_encode(),
        "list": pa.array([[1, 2], None, [], [3]] * 25),
        "pair": pa.array([{"a": 1, "b": "x"}, None] * 50),
        "nulls": pa.nulls(100),
        "vector": pa.array([[1.0, 2.0, 3.0]] * 100, pa.list_(pa.float32(), 3)),
        "when": pa.array([1, 2, None, 4] * 25, pa.timestamp("us", tz="UTC")),
        "money": pa.array([None, 1] * 50, pa.int64()).cast(pa.decimal128(30, 2)),
        "map": pa.array([[("k", 1)], None] * 50, pa.map_(pa.string(), pa.int8())),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([60, 100], pa.int32()), pa.array(["r", "s"])),
        "union": pa.UnionArray.from_sparse(
            pa.array([0, 1] * 50, pa.int8()), [pa.array(range(100)), pa.array(["z"] * 100)]
        ),
    }
)


def put(batch: pa.RecordBatch) -> tuple[Frame, Mapping]:
    laid = Frame(batch)
    size = memory.round_up(laid.size, memory.PAGE)
    mapping = Mapping(memory.create(size, "test"), size, writable=True)
    laid.write(mapping.address)
    return laid, mapping


@pytest.mark.parametrize(("at", "rows"), [(0, 100), (3, 41), (99, 1), (7, 0), (0, 0)])
@pytest.mark.parametrize("column", [None, *BATCH.schema.names])
def test_round_trip_in_place(column: str | None, at: int, rows: int) -> None:
    batch = BATCH.slice(at, rows)
    if column is not None:
        batch = batch.select([column])
    laid, mapping = put(batch)
    whole = mapping.buffer(0, laid.size)
    read = frame.read(whole)
    read.validate(full=True)
    assert read.equals(batch)
    assert frame.bytes_outside(read, whole) == 0
    for c in read.columns:
        for part in c.buffers():
            if part is not None and part.size:
                assert mapping.contains(part.address, part.size)
                assert (part.address - mapping.address) % memory.ALIGNMENT == 0


def test_metadata_and_extension_types_are_kept() -> None:
    kind = pa.fixed_shape_tensor(pa.int16(), [2, 2])
    schema = pa.schema([pa.field("t", kind, metadata={"a": "b"})], metadata={"k": "v"})
    storage = pa.array([[1, 2, 3, 4]] * 3, kind.storage_type)
    batch = pa.RecordBatch.from_arrays([pa.ExtensionArray.from_storage(kind, storage)], schema=schema)
    laid, mapping = put(batch)
    assert frame.read(mapping.buffer(0, laid.size)).schema.equals(schema, check_metadata=True)


def test_layout_copies_no_body() -> None:
    values = pa.array([1.0] * 1_000_000, pa.float64())
    before = pa.total_allocated_bytes()
    laid = Frame(pa.record_batch({"x": values}))
    assert laid.body_bytes == 8_000_000
    assert pa.total_allocated_bytes() - before < 100_000
    [places] = [p for p in laid.places() if p[1]]
    assert places[1] == 8_000_000


@pytest.mark.parametrize("cut", [0, 4, 8, 100, 400, 700])
def test_truncated_frames_are_errors(cut: int) -> None:
    laid, mapping = put(BATCH.select(["i"]))
    assert cut < laid.size
    with pytest.raises((pa.ArrowInvalid, OSError, StopIteration)):
        frame.read(mapping.buffer(0, cut))


def test_reader_remembers_a_schema_and_not_the_memory_it_was_in() -> None:
    """Frames of one schema, of another, with dictionaries and cut off, one after the other."""
    numbers = [pa.record_batch({"x": pa.array([i, None], pa.int64()), "s": ["a", "bc"]}) for i in range(3)]
    words = [pa.record_batch({"d": pa.array(w).dictionary_encode()}) for w in (["u", "v"], ["w", "w"])]
    other = pa.record_batch({"x": pa.array([1.5], pa.float64())})
    reader = frame.Reader()
    for batch in [*numbers, *words, other, words[0], numbers[1], numbers[2]]:
        laid = frame.Frame(batch)
        own = pa.allocate_buffer(laid.size)
        laid.write(own.address)
        before = pa.total_allocated_bytes()
        got = reader.read(own)
        assert pa.total_allocated_bytes() == before
        assert frame.bytes_outside(got, own) == 0
        assert got.equals(batch)
        assert got.schema.equals(batch.schema, check_metadata=True)
        with pytest.raises((pa.ArrowInvalid, OSError)):  # a body that is cut off is the latter
            reader.read(own.slice(0, laid.size // 2))
        del got
        memory.clear(own.address, laid.size)
