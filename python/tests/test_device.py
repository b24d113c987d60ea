"""What is pinned and kept for copies to a device, with a stand-in for CUDA: test_views has the real one."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from stokehold import Task, testing
from stokehold.testing import run

from .harness import numbers

np = pytest.importorskip("numpy")


class Cuda:
    """The parts of PyTorch that to_device uses. Copies end when the test says so."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.pinned: list[int] = []
        self.unpinned: list[int] = []
        self.done = False
        self.waited = 0
        cuda = self

        class Tensor:
            def __init__(self, values: Any) -> None:
                self.values = values

            def reshape(self, shape: Any) -> "Tensor":
                return Tensor(self.values.reshape(shape))

            def to(self, target: Any, *, non_blocking: bool) -> Any:
                assert target.type == "cuda"
                assert non_blocking
                return self.values.copy()

        class Event:
            def record(self) -> None:
                pass

            def query(self) -> bool:
                return cuda.done

            def synchronize(self) -> None:
                cuda.waited += 1

        class Nothing:
            def __init__(self, _: Any) -> None: ...
            def __enter__(self) -> None: ...
            def __exit__(self, *_: object) -> None: ...

        self.from_dlpack = lambda a: Tensor(a.to_numpy())
        self.device = lambda name: SimpleNamespace(type=name.split(":")[0])
        runtime = SimpleNamespace(cudaHostRegister=self.register, cudaHostUnregister=self.unpinned.append)
        self.cuda = SimpleNamespace(is_available=lambda: True, cudart=lambda: runtime, Event=Event, device=Nothing)

    def register(self, address: int, size: int, flags: int) -> int:
        assert size > 0
        assert flags == 8
        self.pinned.append(address)
        return self.code


def test_an_arena_is_pinned_once_and_batches_wait_for_their_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cuda()
    monkeypatch.setitem(sys.modules, "torch", fake)
    arenas: list[int] = []

    def upload(task: Task, batches: Any) -> None:
        for i, batch in enumerate(batches):
            values = task.to_device(batch, "cuda:0")["x"]
            assert values.tolist() == [i, i]
            assert len(task._uploader._pending) == (i + 1 if i < 2 else 1)
            fake.done = i >= 1
            arenas.extend(m.address for m in task._connection.arenas.values())

    result = run(upload, [numbers(float(i), float(i)) for i in range(6)])
    assert result.reclaimed == 0
    assert len(fake.pinned) == 1
    assert set(arenas) == set(fake.pinned)
    assert fake.waited == 1  # for the last copy, before the stage's end is told


def test_pinning_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cuda(code=801)
    monkeypatch.setitem(sys.modules, "torch", fake)
    result = run(lambda task, batches: [task.to_device(b) for b in batches] and None, [numbers(1.0)] * 2)
    assert len(fake.pinned) == 1
    [log] = result.logs
    assert "CUDA error 801" in log["message"]


def test_the_device_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Cuda()
    monkeypatch.setitem(sys.modules, "torch", fake)
    with pytest.raises(testing.StageFailedError, match="'cpu' is not available"):
        run(lambda task, batches: [task.to_device(b, "cpu") for b in batches], [numbers(1.0)])
    fake.cuda.is_available = lambda: False
    with pytest.raises(testing.StageFailedError, match="sees no CUDA device"):
        run(lambda task, batches: [task.to_device(b) for b in batches], [numbers(1.0)])
    assert fake.pinned == []
