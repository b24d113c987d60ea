"""Columns as arrays of other libraries: where they lie, and what cannot be one."""

import warnings
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from stokehold import Task, views
from stokehold.testing import run

np = pytest.importorskip("numpy")

TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 3])
TURNED = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])


def tensor(kind: pa.DataType, rows: int) -> pa.Array:
    values = pa.array(range(6 * rows), pa.float32())
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(values, 6))


BATCH = pa.record_batch(
    {
        "i": pa.array(range(4), pa.int32()),
        "f": pa.array([0.5] * 4, pa.float64()),
        "h": pa.array(np.arange(4, dtype="f2")),
        "v": pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.int64()), 3),
        "vv": pa.FixedSizeListArray.from_arrays(
            pa.FixedSizeListArray.from_arrays(pa.array(range(24), pa.int16()), 2), 3
        ),
        "t": tensor(TENSOR, 4),
        "turned": tensor(TURNED, 4),
        "when": pa.array(range(4), pa.timestamp("ms", tz="UTC")),
        "span": pa.array(range(4), pa.duration("us")),
        "day": pa.array(range(4), pa.date32()),
        "time": pa.array(range(4), pa.time64("ns")),
    }
)
SHAPES = {"i": (4,), "f": (4,), "v": (4, 3), "vv": (4, 3, 2), "t": (4, 2, 3), "turned": (4, 3, 2), "when": (4,)}


def addresses(batch: pa.RecordBatch) -> list[tuple[int, int]]:
    return [(b.address, b.size) for c in batch.columns for b in c.buffers() if b is not None]


@pytest.mark.parametrize("batch", [BATCH, BATCH.slice(1, 2), BATCH.slice(2, 0)])
def test_numpy_arrays_lie_in_the_batch(batch: pa.RecordBatch) -> None:
    arrays = views.numpy(batch)
    assert list(arrays) == batch.schema.names
    for name, a in arrays.items():
        assert not a.flags.writeable
        assert a.shape == (batch.num_rows, *SHAPES.get(name, (4,))[1:]), name
        if a.size:
            at = a.__array_interface__["data"][0]
            assert any(low <= at < low + size for low, size in addresses(batch)), name
    assert arrays["v"].tolist() == batch.column("v").to_pylist()
    assert arrays["vv"].tolist() == batch.column("vv").to_pylist()
    if batch.num_rows:
        assert (arrays["t"] == batch.column("t").to_numpy_ndarray()).all()
        assert (arrays["turned"] == batch.column("turned").to_numpy_ndarray()).all()
    assert (arrays["when"].dtype, arrays["span"].dtype) == (np.dtype("M8[ms]"), np.dtype("m8[us]"))
    assert (arrays["day"].dtype, arrays["time"].dtype) == (np.int32, np.int64)


def test_chosen_columns() -> None:
    assert list(views.numpy(BATCH, ["v", "i"])) == ["v", "i"]
    with pytest.raises(KeyError):
        views.numpy(BATCH, ["nosuch"])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True]),
        pa.array(["a"]),
        pa.array([[1]]),
        pa.nulls(1),
        pa.array(["a"]).dictionary_encode(),
        pa.array([1]).cast(pa.decimal128(20)),
        pa.array([{"a": 1}]),
    ],
)
def test_what_cannot_be_an_array_says_so(column: pa.Array) -> None:
    with pytest.raises(TypeError, match="'c'"):
        views.numpy(pa.record_batch({"i": pa.array([1]), "c": column}))


def test_nulls() -> None:
    batch = pa.record_batch(
        {
            "x": pa.array([1, None, 3], pa.int64()),
            "v": pa.array([[1.0, 2.0], None, [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        }
    )
    with pytest.raises(ValueError, match="'x' has 1 nulls"):
        views.numpy(batch)
    masked = views.numpy(batch.slice(1), nulls="mask")
    assert masked["x"].tolist() == [None, 3]
    assert masked["v"].tolist() == [[None, None], [5, 6]]
    at = np.asarray(masked["x"]).__array_interface__["data"][0]
    assert at == batch.column("x").buffers()[1].address + 8
    inner = pa.record_batch({"v": pa.array([[1.0, None]], pa.list_(pa.float32(), 2))})
    with pytest.raises(ValueError, match="within its lists"):
        views.numpy(inner, nulls="mask")


def test_torch_tensors_lie_in_the_batch() -> None:
    torch = pytest.importorskip("torch", reason="SKIPPED: PyTorch is not installed: this proves nothing here")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = views.torch(BATCH)
    arrays = views.numpy(BATCH)
    for name, t in tensors.items():
        assert t.data_ptr() == arrays[name].__array_interface__["data"][0], name
        assert tuple(t.shape) == arrays[name].shape, name
    assert torch.equal(tensors["v"], torch.arange(12).reshape(4, 3))
    assert (tensors["turned"].numpy() == arrays["turned"]).all()

    def hold(task: Task, batches: Any) -> None:
        loop = iter(batches)
        t = task.torch(next(loop))["i"]
        list(loop)
        assert t.tolist() == [0, 1, 2, 3]

    run(hold, [BATCH] * 6)


def test_jax_arrays() -> None:
    pytest.importorskip("jax", reason="SKIPPED: JAX is not installed: this proves nothing here")
    arrays = views.jax(BATCH, ["i", "t", "turned"])
    expected = views.numpy(BATCH)
    for name, a in arrays.items():
        assert (np.asarray(a) == expected[name]).all()


@pytest.mark.parametrize("view", [views.torch, views.jax])
def test_nulls_are_refused_everywhere(view: Callable[..., Any]) -> None:
    pytest.importorskip(view.__name__, reason=f"SKIPPED: {view.__name__} is not installed: this proves nothing here")
    with pytest.raises(ValueError, match="nulls"):
        view(pa.record_batch({"x": pa.array([1, None])}))


def test_to_device() -> None:
    torch = pytest.importorskip("torch", reason="SKIPPED: PyTorch is not installed: this proves nothing here")

    def upload(task: Task, batches: Any) -> None:
        for batch in batches:
            on = task.to_device(batch)
            assert on["v"].device.type == "cuda"
            task.metric(total=float(on["v"].sum().item()))

    if torch.cuda.is_available():
        result = run(upload, [BATCH] * 20)
        assert result.metrics == {"total": 66.0}
        assert result.logs == []  # pinning worked
        return
    with pytest.raises(Exception, match="sees no CUDA device"):
        run(upload, [BATCH])
    pytest.skip("SKIPPED: no CUDA device: copies to a device prove nothing here")
