"""Stages, from the decorator to the end of a job, over a real socket."""

import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from typing import Any

import pyarrow as pa
import pytest

import stokehold
from stokehold import Cancelled, PermanentError, Stages, Task, testing
from stokehold.testing import Result, StageFailedError, run

from .harness import descriptors, drain, numbers, until, worker


def batches(n: int) -> list[pa.RecordBatch]:
    return [numbers(float(i), i + 0.5) for i in range(n)]


def first(batch: pa.RecordBatch) -> float:
    return float(batch.column(0)[0].as_py())


@pytest.mark.parametrize("shared", [False, True])
def test_echo(shared: bool) -> None:
    def echo(task: Task, given: Any) -> None:
        for batch in given:
            task.emit(batch)

    before = descriptors()
    result = run(echo, batches(30), shared=shared)
    assert [first(b) for b in result.batches] == list(range(30))
    assert [o.sequence for o in result.outputs] == list(range(30))
    assert all(o.appended and o.shared == shared for o in result.outputs)
    assert (result.copied_bytes, result.written_bytes, result.reclaimed) == (0, 30 * 64, 0)
    assert result.most_lent <= 4
    del result
    until("descriptors are back", lambda: descriptors() == before)


def test_batches_are_the_hosts_memory() -> None:
    seen = []

    def where(task: Task, given: Any) -> None:
        for batch in given:
            address = batch.column(0).buffers()[1].address
            arena = task._connection.mapping_of(address, 16)
            assert arena is not None
            seen.append(address - arena.address)
            with open("/proc/self/maps") as maps:
                lines = [line.split() for line in maps]
            modes = [m for span, m, *_ in lines if int(span.split("-")[0], 16) == arena.address]
            assert modes == ["r--s"]

    assert run(where, batches(3)).copied_bytes == 0
    assert len(seen) == 3


def test_epochs_ranges_and_early_exit() -> None:
    def look(task: Task, given: Any) -> None:
        for _ in range(2):
            assert [first(b) for b in given] == [0, 1, 2, 3, 4]
        assert [first(b) for b in given.range(1, 3)] == [1, 2]
        assert list(given.range(2, 2)) == []
        loop = iter(given)
        next(loop)
        with pytest.raises(RuntimeError, match="another loop"):
            next(iter(given))
        loop.close()
        with pytest.raises(RuntimeError, match="left before its end"):
            list(given)

    run(look, batches(5))


def test_two_inputs_by_name() -> None:
    def join(task: Task) -> None:
        assert task.inputs == ["left", "right"]
        for a, b in zip(task.input("left"), task.input("test/1/right"), strict=False):
            task.metric(f"m{first(a):.0f}", first(a) + first(b))
        with pytest.raises(KeyError, match="left"):
            task.input("middle")

    result = run(join, inputs={"left": batches(3), "right": batches(9)})
    assert result.metrics == {"m0": 0, "m1": 2, "m2": 4}


@pytest.mark.parametrize("credit", [1, 2, 3, 256])
def test_any_credit_is_enough_for_a_loop(credit: int) -> None:
    def total(task: Task, given: Any) -> None:
        task.metric(total=sum(first(b) for b in given))

    result = run(total, batches(20), credit=credit)
    assert result.metrics == {"total": 190}
    assert result.copied_bytes == (0 if credit > 1 else result.copied_bytes)


def test_what_is_kept_within_the_stage_is_right_and_bounded() -> None:
    def gather(task: Task, given: Any) -> None:
        table = pa.Table.from_batches(list(given))
        assert table.column(0).to_pylist()[::2] == list(range(20))

    result = run(gather, batches(20))
    assert result.most_lent <= 4
    assert result.copied_bytes > 0
    assert [log["level"] for log in result.logs] == ["WARN"]


def test_a_stage_that_keeps_all_of_two_is_told() -> None:
    with pytest.raises(StageFailedError, match=r"lends at most 2 at once.*stokehold\.copy"):
        run(lambda task, given: list(given), batches(5), credit=2)


def test_a_view_keeps_the_lease() -> None:
    np = pytest.importorskip("numpy")

    def look(task: Task, given: Any) -> None:
        loop = iter(given)
        view = task.numpy(next(loop))["x"][1:]
        later = [next(loop) for _ in range(2)]
        del later
        gc.collect()
        assert view.tolist() == [0.5]  # what is released is overwritten by the host
        assert not view.flags.writeable
        assert isinstance(view, np.ndarray)
        list(loop)

    run(look, batches(8))


kept: list[Any] = []


@pytest.mark.parametrize("fails", [False, True])
def test_memory_kept_beyond_the_stage_is_an_error(fails: bool) -> None:
    def keep(task: Task, given: Any) -> None:
        for batch in given:
            kept.append(batch.column(0)[1:])  # part of a column is enough
        if fails:
            raise ValueError("first")

    try:
        with pytest.raises(StageFailedError, match=r"kept 2 batches.*stokehold\.copy") as e:
            run(keep, batches(2))
        assert ("first" in str(e.value)) == fails
    finally:
        kept.clear()


def test_copies_may_be_kept_and_cycles_are_collected() -> None:
    class Loop:
        def __init__(self, held: Any) -> None:
            self.held, self.me = held, self

    def keep(task: Task, given: Any) -> None:
        for batch in given:
            kept.append(stokehold.copy(batch))
            Loop(batch)

    run(keep, batches(3))
    assert [first(b) for b in kept] == [0, 1, 2]
    kept.clear()


def test_tracebacks_do_not_hold_batches() -> None:
    def fail(task: Task, given: Any) -> None:
        for batch in given:
            try:
                raise KeyError(batch.num_rows)
            except KeyError as e:
                raise ValueError("in the middle") from e

    with pytest.raises(StageFailedError, match="in the middle") as caught:
        run(fail, batches(3))
    assert "kept" not in str(caught.value)
    assert "KeyError" in caught.value.failure["traceback"]
    assert "test_stage.py" in caught.value.failure["traceback"]


def test_parameters_are_laid_over_each_other() -> None:
    def look(task: Task, given: Any) -> None:
        assert (task.params, task.seed, task.attempt, task.pipeline, task.stage) == ({"a": 1}, 7, 3, "test", "stage")
        assert task.remaining is not None
        assert 0 < task.remaining <= 60
        assert list(given) == []

    run(look, params={"a": 1}, seed=7, attempt=3, deadline=60)
    with worker({"s": lambda task: task.metric(n=task.params["n"], deadline=task.deadline is None)}) as host:
        host.greet()
        assert host.run("s", params={"n": 3}).metrics == {"n": 3, "deadline": 1}


def test_reports() -> None:
    def talk(task: Task) -> None:
        task.progress(1, total=3, note="begun", loss=0.5)
        task.progress(loss=float("nan"))
        task.progress(done=2, loss=float("inf"))
        task.note("colour", "green")
        task.note("size", "large")
        task.metric("auc", 0.5)
        with pytest.raises(ValueError, match="nan"):
            task.metric(auc=float("nan"))
        with pytest.raises(TypeError):
            task.metric("auc")
        logging.getLogger("mine").info("one %s", "two", extra={"k": [1], "odd": object()})
        logging.getLogger("mine").debug("not this")
        task.log.error("x" * 100_000, extra={"big": "y" * 100_000})
        try:
            raise OSError("disk")
        except OSError:
            task.log.exception("went wrong")

    result = run(talk)
    assert result.progress[0] == {"done": 1, "total": 3, "note": "begun", "values": {"loss": 0.5}}
    assert "values" not in result.progress[1]
    assert result.notes == {"colour": "green", "size": "large"}
    assert result.metrics == {"auc": 0.5}
    nan, one, big, trace = result.logs
    assert "loss is nan" in nan["message"]
    assert one["message"] == "one two"
    assert one["attrs"]["k"] in ([1], "[1]")
    assert "dropped" in big["attrs"]
    assert "OSError: disk" in trace["message"]
    assert logging.getLogger().handlers == [] or all(
        not isinstance(h, stokehold.logs.HostHandler) for h in logging.getLogger().handlers
    )


def test_progress_counts_batches_by_itself() -> None:
    def count(task: Task, given: Any) -> None:
        for _ in given:
            task.progress()

    assert [p["done"] for p in run(count, batches(3)).progress] == [1, 2, 3]


def test_checkpoint_and_restore() -> None:
    def resume(task: Task, given: Any) -> None:
        state = task.restore() or {"next": 0}
        for batch in given.range(state["next"]):
            task.emit(batch)
            task.checkpoint({"next": given.last_sequence + 1})
        assert task.restore() == {"next": 5}

    fresh = run(resume, batches(5))
    assert [o.sequence for o in fresh.outputs] == [0, 1, 2, 3, 4]
    assert fresh.checkpoint == {"next": 5}
    assert not any("values" in p for p in fresh.progress)
    later = run(resume, batches(5), attempt=2, checkpoint={"next": 3}, written=3)
    assert [(o.sequence, first(o.batch)) for o in later.outputs] == [(3, 3), (4, 4)]
    assert later.progress[0]["values"] == {"stokehold.restored": 1}


def test_checkpoints_are_small_json() -> None:
    def bad(task: Task) -> None:
        with pytest.raises(ValueError, match="at most 32768"):
            task.checkpoint("x" * 40_000)
        with pytest.raises(ValueError, match="JSON"):
            task.checkpoint(float("nan"))
        with pytest.raises(TypeError, match="no JSON form"):
            task.checkpoint(object())

    run(bad)


def test_outputs_are_placed_and_checked() -> None:
    def place(task: Task) -> None:
        assert task.emit(numbers(1), sequence=40) == 40
        assert task.emit(numbers(2)) == 0
        with pytest.raises(ValueError, match="sequence -1"):
            task.emit(numbers(1), sequence=-1)
        with pytest.raises(TypeError, match="Table"):
            task.emit(pa.table({"x": [1]}))

    result = run(place)
    assert [(o.sequence, o.appended) for o in result.outputs] == [(40, False), (0, True)]


def test_outputs_wait_for_their_acknowledgement() -> None:
    def flood(task: Task) -> None:
        for i in range(9):
            task.emit(numbers(float(i)))

    with worker({"s": flood}) as host:
        host.greet()
        host.task()
        for _ in range(4):
            packet = host.expect(stokehold.wire.Kind.OUTPUT)
            os.close(packet.fds[0])
        host.channel.send(stokehold.wire.Kind.PING, 0, bytes(8))
        host.expect(stokehold.wire.Kind.PONG)  # and no fifth output before it
        for i in range(9):
            host.channel.send(stokehold.wire.Kind.ACK, 1, stokehold.wire.U64.pack(i))
            if i < 5:
                os.close(host.expect(stokehold.wire.Kind.OUTPUT).fds[0])
        host.expect(stokehold.wire.Kind.DONE)


@pytest.mark.parametrize("where", ["loop", "emit", "check", "flag"])
def test_cancellation(where: str) -> None:
    def obey(task: Task, given: Any) -> None:
        task.progress(1)
        if where == "loop":
            while not task.cancelled:
                drain(task, given)
        elif where == "flag":
            until("it is cancelled", lambda: task.cancelled)
            return
        while True:
            if where == "emit":
                task.emit(numbers(1))
            else:
                task.check()

    result = run(obey, batches(3), cancel_when=lambda r: bool(r.progress), check=False)
    if where == "flag":
        assert result.failure is None
    else:
        assert result.failure is not None
        assert result.failure["message"] == "Cancelled: not wanted any more"


def test_failures_say_what_they_are() -> None:
    def permanent(task: Task) -> None:
        raise PermanentError("never")

    def leave(task: Task) -> None:
        sys.exit(3)

    def scream(task: Task) -> None:
        raise ValueError("\x01" * 100_000)

    def last(task: Task) -> None:
        raise ValueError("é" * 100_000)

    for stage, want in ((permanent, "PermanentError: never"), (leave, "SystemExit: 3"), (scream, "\x01"), (last, "é")):
        failure = run(stage, check=False).failure
        assert failure is not None
        assert want in failure["message"]
        assert failure.get("permanent", False) == (stage is permanent)
        assert len(failure["traceback"].encode()) <= 16_384
        assert len(failure["message"].encode()) <= 8192


def test_unknown_stages_and_pipeline_names() -> None:
    stages = Stages()

    @stages.stage("train")
    def short(task: Task) -> None:
        task.metric(which=1)

    @stages.stage("churn/train")
    def long(task: Task) -> None:
        task.metric(which=2)

    with pytest.raises(ValueError, match="two stages"):
        stages.stage("train")(short)
    with pytest.raises(TypeError, match="needs a name"):
        stages.stage(short)  # type: ignore[arg-type]
    with worker(stages) as host:
        host.greet()
        assert host.run("churn/train").metrics == {"which": 2}
        assert host.run("flights/train").metrics == {"which": 1}
        failure = host.run("flights/nosuch").failure
        assert failure == {
            "message": "this worker has no stage 'flights/nosuch'; it has churn/train, train",
            "unknown_stage": True,
        }
        host.goodbye()
        host.join()
        assert host.error is None


def test_goodbye_cancels_what_runs() -> None:
    def wait(task: Task) -> None:
        task.progress(1)
        until("it is cancelled", lambda: task.cancelled)
        with pytest.raises(Cancelled, match="goodbye"):
            task.check()

    with worker({"s": wait}) as host:
        host.greet()
        host.task()
        host.expect(stokehold.wire.Kind.PROGRESS)
        host.goodbye()
        host.expect(stokehold.wire.Kind.DONE)
        host.join()
        assert host.error is None


def test_threads_of_a_stage_share_the_connection() -> None:
    def many(task: Task) -> None:
        def emit(k: int) -> None:
            for i in range(20):
                task.emit(numbers(float(k), float(i)))
                task.progress(i)

        def read(name: str) -> None:
            assert sum(1 for _ in task.input(name)) == 20

        jobs = [threading.Thread(target=emit, args=(k,)) for k in range(3)]
        jobs += [threading.Thread(target=read, args=(name,)) for name in ("a", "b")]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    result = run(many, inputs={"a": batches(20), "b": batches(20)})
    assert sorted(o.sequence for o in result.outputs) == list(range(60))
    assert result.reclaimed == 0


def test_a_task_is_over_when_its_stage_is() -> None:
    leaked: list[Task] = []
    run(lambda task: leaked.append(task))
    with pytest.raises(Cancelled, match="is over"):
        leaked[0].progress(1)


def test_connections_go_away() -> None:
    made: list[weakref.ref[Any]] = []
    run(lambda task: made.append(weakref.ref(task._connection)))
    until("it is collected", lambda: gc.collect() >= 0 and made[0]() is None)


PROGRAM = """
import sys
from stokehold import serve, stage
@stage("train")
def train(task, batches): pass
print("garbage")
serve()
"""


@pytest.mark.parametrize("arguments", [["-c", PROGRAM], ["-m", "stokehold"]])
def test_without_a_host_it_says_what_it_is(arguments: list[str]) -> None:
    env = {k: v for k, v in os.environ.items() if k != "STOKEHOLD_WORKER"}
    done = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "is a Stokehold worker with the stages" in done.stderr
    assert ("train" in done.stderr) == (arguments[0] == "-c")


def test_descriptor_3_has_to_be_a_socket() -> None:
    env = {**os.environ, "STOKEHOLD_WORKER": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "descriptor 3" in done.stderr


@pytest.mark.parametrize(("end", "code"), [("goodbye", 0), ("gone", 0), ("version", 1), ("kept", 3)])
def test_how_a_process_ends(end: str, code: int) -> None:
    program = PROGRAM.replace("pass", "globals().update(kept=list(batches))")
    host = testing.Host()
    fd = host.worker_socket.fileno()
    program = f"import os; os.dup2({fd}, 3); {fd} != 3 and os.close({fd})\n" + program
    env = {**os.environ, "STOKEHOLD_WORKER": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=env,
        pass_fds=[fd],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    host.worker_socket.close()
    try:
        if end == "version":
            hello = stokehold.wire.HELLO.pack(stokehold.wire.MAGIC, 9, 1000, 0, 0, 0)
            host.channel.send(stokehold.wire.Kind.HELLO, 0, hello)
        else:
            host.greet()
            assert host.pid == process.pid
            if end == "goodbye":
                host.goodbye()
            elif end == "gone":
                host.close()
            else:
                assert host.run("train", {"in": [numbers(1)]}).failure is not None
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert {"version": "broke the worker protocol: version 9", "kept": "kept a batch"}.get(end, "") in said
    finally:
        process.kill()
        process.wait()
        host.close()


def test_results_are_checked() -> None:
    assert isinstance(run(lambda task: time.sleep(0)), Result)
    assert run(lambda task: 1 / 0, check=False).failure is not None
