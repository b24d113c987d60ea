"""Models as safetensors."""

import json
from typing import Any

import pyarrow as pa
import pytest

from stokehold import PermanentError, Task, Tensor
from stokehold.safetensors import BITS, Artifact
from stokehold.testing import StageFailedError, run

from .harness import worker


def written(tensors: Any, metadata: Any = None) -> bytes:
    artifact = Artifact(tensors, metadata)
    out = pa.allocate_buffer(artifact.size)
    artifact.write(out.address)
    return bytes(out.to_pybytes())


def parsed(raw: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, list[int], bytes]]]:
    """Read it as strictly as the format asks for."""
    size = int.from_bytes(raw[:8], "little")
    assert size % 8 == 0
    header = json.loads(raw[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body = raw[8 + size :]
    tensors, end = {}, 0
    for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        low, high = t["data_offsets"]
        assert low == end
        assert low % (BITS[t["dtype"]] // 8) == 0
        count = 1
        for n in t["shape"]:
            count *= n
        assert high - low == count * BITS[t["dtype"]] // 8
        tensors[name], end = (t["dtype"], t["shape"], body[low:high]), high
    assert end == len(body)
    return metadata, tensors


def test_arrow_and_bytes() -> None:
    vectors = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int16(), 2))
    kind = pa.fixed_shape_tensor(pa.uint8(), [2])
    cube = pa.ExtensionArray.from_storage(kind, pa.array([[1, 2]], kind.storage_type))
    metadata, tensors = parsed(
        written(
            {
                "f": pa.array([1.0, 2.0]),
                "v": vectors.slice(1),
                "chunks": pa.chunked_array([[1], [2]], pa.int8()),
                "bits": pa.array([True, False]),
                "cube": cube,
                "bf": Tensor("BF16", (1, 2), b"\0\x3f\0\x40"),
                "f8": Tensor("F8_E4M3", (3,), bytearray(3)),
                "none": Tensor("F32", (0, 5), b""),
                "scalar": Tensor("I64", (), (7).to_bytes(8, "little")),
            },
            {"by": "me"},
        )
    )
    assert metadata == {"by": "me"}
    assert tensors["v"] == ("I16", [2, 2], bytes([3, 0, 4, 0, 5, 0, 6, 0]))
    assert tensors["chunks"] == ("I8", [2], b"\1\2")
    assert tensors["bits"] == ("BOOL", [2], b"\1\0")
    assert tensors["cube"] == ("U8", [1, 2], b"\1\2")
    assert tensors["bf"] == ("BF16", [1, 2], b"\0\x3f\0\x40")
    assert tensors["scalar"][1] == []
    assert tensors["none"] == ("F32", [0, 5], b"")


def test_numpy() -> None:
    np = pytest.importorskip("numpy")
    a = np.arange(6, dtype="f4").reshape(2, 3)
    _, tensors = parsed(
        written({"a": a, "turned": a.T, "big": a.astype(">f4"), "b": np.array([True]), "c": pa.Tensor.from_numpy(a)})
    )
    for name in ("a", "big", "c"):
        assert tensors[name] == ("F32", [2, 3], a.tobytes())
    assert tensors["turned"] == ("F32", [3, 2], a.T.tobytes())
    assert tensors["b"] == ("BOOL", [1], b"\1")
    with pytest.raises(TypeError, match=r"'z'.*complex128"):
        Artifact({"z": np.zeros(2, complex)})


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="SKIPPED: PyTorch is not installed: this proves nothing here")
    w = torch.arange(6, dtype=torch.float32, requires_grad=True).reshape(2, 3)
    _, tensors = parsed(
        written({"w": w, "t": w.T, "bf": w.to(torch.bfloat16), "f8": w.to(torch.float8_e4m3fn), "s": torch.tensor(3)})
    )
    assert tensors["t"] == ("F32", [3, 2], w.detach().numpy().T.tobytes())
    assert (tensors["bf"][0], tensors["f8"][0], tensors["s"][:2]) == ("BF16", "F8_E4M3", ("I64", []))


def test_jax() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="SKIPPED: JAX is not installed: this proves nothing here")
    _, tensors = parsed(written({"w": jnp.ones((2, 2), jnp.bfloat16)}))
    assert tensors["w"] == ("BF16", [2, 2], b"\x80\x3f" * 4)


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "without tensors"),
        ({"": pa.array([1])}, "no name"),
        ({"__metadata__": pa.array([1])}, "no name"),
        ({"x": pa.array(["a"])}, "no type string"),
        ({"x": pa.array([1, None])}, "1 nulls"),
        ({"x": [1.0]}, "a list"),
        ({"x": Tensor("F31", (1,), b"")}, "F31"),
        ({"x": Tensor("F32", (2,), b"1234")}, "4 bytes for shape"),
        ({"x": Tensor("F32", (-1,), b"")}, "shape"),
    ],
)
def test_what_cannot_be_stored_says_so(tensors: Any, why: str) -> None:
    with pytest.raises((TypeError, ValueError), match=why):
        Artifact(tensors)


def test_save_model() -> None:
    def save(task: Task) -> None:
        weights = {"w": pa.array([1.0, 2.0])}
        version = task.save_model(weights, {"auc": 0.5}, {"by": "me"}, "fp16", kind="linear")
        task.note("version", version)
        task.note("second", task.save_artifact(b"onnx bytes", "onnx"))
        with pytest.raises(ValueError, match="finite"):
            task.save_model(weights, metrics={"auc": float("nan")})
        with pytest.raises(ValueError, match="0 bytes"):
            task.save_artifact(b"", "opaque")

    result = run(save)
    first, second = result.models
    assert first.note == {
        "format": "safetensors",
        "metrics": {"auc": 0.5},
        "metadata": {"by": "me"},
        "precision": "fp16",
        "kind": "linear",
    }
    assert parsed(first.data)[1]["w"][0] == "F64"
    assert result.notes == {"version": first.version, "second": second.version}
    assert second.data == b"onnx bytes"


def test_models_have_a_limit_and_may_be_refused() -> None:
    def save(task: Task) -> None:
        task.save_artifact(bytes(100), "opaque")

    with worker({"s": save}, model_bytes=99) as host:
        host.greet()
        failure = host.run("s").failure
        assert failure is not None
        assert failure["permanent"]
        assert "at most 99" in failure["message"]

    def wait(task: Task) -> None:
        task.progress(1)
        task._job.cancelled = "the host has no registry"
        save(task)

    with pytest.raises(StageFailedError, match="no registry"):
        run(wait)
    assert issubclass(PermanentError, Exception)
