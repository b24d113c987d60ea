"""The flights example's features stage as a Python worker.

The host starts it; ``stokehold demo --worker python`` shows it at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pyarrow as pa
from features import SCHEMA, History

from stokehold import PermanentError, Task, serve, stage

SCHEDULE, LABELS = "flights/schedule", "flights/labels"
TRAIN_WEEKS = 10  # how many weeks before its holdout a model is trained on


@stage("flights-train/features")
def features_to_train(task: Task) -> None:
    week = week_of(task.params)
    make(task, max(week - TRAIN_WEEKS, 0), week + 1)


@stage("flights-score/features")
def features_to_score(task: Task) -> None:
    week = week_of(task.params)
    make(task, week, week + 1)


def week_of(params: dict[str, Any]) -> int:
    """The week that a run is about: proposed by the event that started it, or given."""
    week = (params.get("params") or {}).get("week", params.get("week"))
    if week is None:
        raise PermanentError('no week: start the run with {"week": N}')
    return int(week)


def make(task: Task, start: int, stop: int) -> None:
    """Make the features of weeks start to stop - 1. The delays of a week are not even opened before it is made."""
    history = History()
    with closing(task.input(SCHEDULE).range(0, stop)) as schedules, closing(task.input(LABELS).range(0, stop - 1)) as delays:
        for number in range(stop):
            flights = history.read(need(schedules, SCHEDULE, number))
            if number >= start:
                columns = history.features(flights)
                with task.loan(SCHEMA, len(flights.hour), sequence=number) as out:
                    for name, values in columns.items():
                        out[name][:] = values
                task.progress(done=number - start + 1, total=stop - start, note=f"week {number}")
            if number + 1 < stop:
                history.learn(flights, need(delays, LABELS, number))


def need(batches: Iterator[pa.RecordBatch], dataset: str, week: int) -> pa.RecordBatch:
    """The next batch, which has to be there."""
    for batch in batches:
        return batch
    raise PermanentError(f"{dataset} ends before week {week}")


if __name__ == "__main__":
    serve()
