"""Batches built where the host reads them."""

import sys
from typing import Any

import pyarrow as pa
import pytest

from stokehold import Task
from stokehold.testing import run

from .harness import numbers

SCHEMA = pa.schema(
    [
        ("x", pa.float64()),
        ("v", pa.list_(pa.float32(), 3)),
        ("t", pa.fixed_shape_tensor(pa.int16(), [2, 2])),
        ("when", pa.timestamp("ms", tz="UTC")),
        ("day", pa.date32()),
        ("half", pa.float16()),
    ],
    metadata={"k": "v"},
)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_loans_copy_nothing(shared: bool, rows: int) -> None:
    np = pytest.importorskip("numpy")

    def build(task: Task) -> None:
        for k in range(3):
            with task.loan(SCHEMA, rows) as out:
                assert list(out) == SCHEMA.names
                assert len(out) == 6
                out["x"][:] = np.arange(rows) + k
                out["v"][:] = np.arange(rows * 3).reshape(rows, 3)
                out["t"][:] = 7
                out["when"][:] = np.datetime64("2020-01-01")
                out["day"][:] = 3
                out["half"][:] = 0.5

    result = run(build, shared=shared)
    assert result.written_bytes == 0
    assert len(result.outputs) == 3
    for k, output in enumerate(result.outputs):
        assert output.shared == shared
        assert output.batch.schema.equals(SCHEMA, check_metadata=True)
        assert output.batch.column("x").to_pylist() == [k + i for i in range(rows)]
        if rows:
            assert output.batch.column("v")[0].as_py() == [0, 1, 2]
            assert output.batch.column("t")[0].as_py() == [7, 7, 7, 7]
            assert output.batch.column("half")[0].as_py() == 0.5


def test_what_was_built_cannot_be_changed() -> None:
    pytest.importorskip("numpy")

    def build(task: Task) -> None:
        with task.loan(numbers().schema, 2) as out:
            x = out["x"]
            part = x[1:]
            x[:] = [1, 2]
        with pytest.raises(ValueError, match="read-only"):
            x[0] = 9
        with pytest.raises(KeyError, match="over"):
            out["x"]
        part[0] = 9  # a copy by now
        assert x.tolist() == [1, 9]

    assert run(build).batches[0].column(0).to_pylist() == [1, 2]


@pytest.mark.parametrize("shared", [False, True])
def test_an_exception_discards_the_batch(shared: bool) -> None:
    def build(task: Task) -> None:
        for _ in range(100):
            with pytest.raises(RuntimeError, match="no"), task.loan(numbers().schema, 1000):
                raise RuntimeError("no")
        if task._connection.pool is not None:
            assert task._connection.pool.out == 0

    assert run(build, shared=shared).outputs == []


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.bool_(), pa.list_(pa.int8()), pa.decimal128(5), pa.dictionary(pa.int8(), pa.string())]
)
def test_columns_without_fixed_width_are_refused(kind: pa.DataType) -> None:
    def build(task: Task) -> None:
        with pytest.raises(TypeError, match=r"'c'.*emit a batch"), task.loan(pa.schema([("c", kind)]), 3):
            pass

    assert run(build).outputs == []


def test_without_numpy_columns_are_memoryviews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)

    def build(task: Task) -> None:
        with task.loan(pa.schema([("x", pa.int32()), ("v", pa.list_(pa.float32(), 2))]), 2) as out:
            assert isinstance(out["x"], memoryview)
            out["x"][1] = 5
            out["x"][0] = 4
            for i in range(2):
                for j in range(2):
                    out["v"][i, j] = i + j / 2

    [batch] = run(build).batches
    assert batch.to_pydict() == {"x": [4, 5], "v": [[0, 0.5], [1, 1.5]]}


def test_shared_slots_are_used_again_and_a_full_arena_is_no_wait() -> None:
    def emit(task: Task) -> None:
        for i in range(50):
            task.emit(numbers(float(i)))

    from stokehold.testing import Host

    from .harness import worker

    shared: list[bool] = []
    for keep in (False, True):
        with worker({"s": emit}, shared_outputs=True, granted_bytes=16 * 4096, keep_slots=keep) as host:
            host.greet()
            result = host.run("s", shared=True)
            assert [b.column(0)[0].as_py() for b in result.batches] == list(range(50))
            shared = [o.shared for o in result.outputs]
            assert sum(shared) == (16 if keep else 50)
            assert isinstance(host, Host)


def test_the_stage_may_ask_for_sealed_memory() -> None:
    def emit(task: Task) -> Any:
        task.emit(numbers(1), sealed=True)
        task.emit(numbers(2))

    assert [o.shared for o in run(emit, shared=True).outputs] == [False, True]
    assert [o.shared for o in run(emit).outputs] == [False, False]
