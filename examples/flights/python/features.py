"""The features stage of the flights example, for a Python worker.

The same statistics as features.go makes in Go, so that either may run: row i of
a batch of features describes flight i of the week's schedule, and depends on the
schedule of that week and on schedules and delays of the weeks before it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NAMES = (
    "hour_sin", "hour_cos", "night",
    "thursday", "friday", "saturday", "sunday",
    "log_distance", "distance",
    "lift_hour", "lift_weekday",
    "lift_origin", "lift_destination", "lift_route",
    "lift_origin_last", "lift_destination_last",
    "lift_origin_hour", "lift_destination_hour",
    "traffic_origin",
)  # fmt: skip
SCHEMA = pa.schema([pa.field(name, pa.float32(), nullable=False) for name in NAMES], metadata={"features": ",".join(NAMES)})

LATE_MINUTES = 15
MEMORY_PER_WEEK = 0.8
PRIOR_RATE = 0.2  # before anything is known
SHRINK_ROWS = 30.0  # rows at which an own rate and the overall rate weigh the same
SHRINK_CELL = 60.0  # for an airport at an hour, towards the airport
HOURS = 24
HOUR_MICROS = 3_600_000_000
DAY_MICROS = HOURS * HOUR_MICROS


@dataclass
class Tally:
    """Flights and late ones by group, both decayed by week."""

    rows: Floats = field(default_factory=lambda: np.zeros(0))
    late: Floats = field(default_factory=lambda: np.zeros(0))

    def grow(self, groups: int) -> None:
        more = groups - len(self.rows)
        if more > 0:
            self.rows = np.concatenate([self.rows, np.zeros(more)])
            self.late = np.concatenate([self.late, np.zeros(more)])

    def learn(self, group: Ints, late: Floats, memory: float = MEMORY_PER_WEEK) -> None:
        n = len(self.rows)
        self.rows = self.rows * memory + np.bincount(group, minlength=n)
        self.late = self.late * memory + np.bincount(group, weights=late, minlength=n)

    def share(self, group: Ints, prior: Floats | float, strength: float) -> Floats:
        """The late share, shrunk towards prior as if `strength` flights of that share had been seen too."""
        return (self.late[group] + prior * strength) / (self.rows[group] + strength)


def logit(p: Floats) -> Floats:
    p = np.clip(p, 1e-3, 1 - 1e-3)
    return np.log(p / (1 - p))


@dataclass
class Week:
    """One week's schedule in the form that the statistics need: an array element per flight."""

    origin: Ints
    destination: Ints
    route: Ints
    hour: Ints
    weekday: Ints
    miles: npt.NDArray[np.float32]


class History:
    """What is known of the weeks so far."""

    def __init__(self) -> None:
        self._airports: dict[str, int] = {}
        self._routes: dict[tuple[int, int], int] = {}
        self._all, self._all_last = Tally(np.zeros(1), np.zeros(1)), Tally(np.zeros(1), np.zeros(1))
        self._hour = Tally(np.zeros(HOURS), np.zeros(HOURS))
        self._weekday = Tally(np.zeros(7), np.zeros(7))
        self._origin, self._origin_last = Tally(), Tally()
        self._destination, self._destination_last = Tally(), Tally()
        self._origin_hour, self._destination_hour = Tally(), Tally()
        self._route = Tally()

    def _number(self, column: pa.Array) -> Ints:
        """Numbers airport codes in the order in which they appear."""
        coded = column.dictionary_encode()
        places = [self._airports.setdefault(code, len(self._airports)) for code in coded.dictionary.to_pylist()]
        return np.asarray(places, dtype=np.int64)[coded.indices.to_numpy()]

    def read(self, batch: pa.RecordBatch) -> Week:
        at = batch.column("date").cast(pa.int64()).to_numpy()
        day, in_day = np.divmod(at, DAY_MICROS)
        origin, destination = self._number(batch.column("origin")), self._number(batch.column("destination"))
        pairs, inverse = np.unique(np.stack([origin, destination]), axis=1, return_inverse=True)
        routes = [self._routes.setdefault((int(o), int(d)), len(self._routes)) for o, d in pairs.T]
        airports = len(self._airports)
        for tally in (self._origin, self._origin_last, self._destination, self._destination_last):
            tally.grow(airports)
        for tally in (self._origin_hour, self._destination_hour):
            tally.grow(airports * HOURS)
        self._route.grow(len(self._routes))
        return Week(
            origin=origin,
            destination=destination,
            route=np.asarray(routes, dtype=np.int64)[inverse.reshape(-1)],
            hour=in_day // HOUR_MICROS,
            weekday=(day + 4) % 7,  # 1970-01-01 was a Thursday; 0 is Sunday
            miles=batch.column("distance").to_numpy().astype(np.float32),
        )

    def learn(self, week: Week, batch: pa.RecordBatch) -> None:
        """Adds a week whose delays are known."""
        delay = batch.column("delay").to_numpy()
        if len(delay) != len(week.hour):
            raise ValueError(f"{len(delay)} delays for {len(week.hour)} flights")
        late = (delay > LATE_MINUTES).astype(np.float64)
        every = np.zeros(len(late), dtype=np.int64)
        self._all.learn(every, late)
        self._all_last.learn(every, late, 0.0)
        self._hour.learn(week.hour, late)
        self._weekday.learn(week.weekday, late)
        self._origin.learn(week.origin, late)
        self._origin_last.learn(week.origin, late, 0.0)
        self._destination.learn(week.destination, late)
        self._destination_last.learn(week.destination, late, 0.0)
        self._origin_hour.learn(week.origin * HOURS + week.hour, late)
        self._destination_hour.learn(week.destination * HOURS + week.hour, late)
        self._route.learn(week.route, late)

    def features(self, week: Week) -> dict[str, npt.NDArray[np.float32]]:
        """The columns of one batch, in the order of NAMES."""
        whole = np.zeros(1, dtype=np.int64)
        rate = self._all.share(whole, PRIOR_RATE, 1)
        rate_last = self._all_last.share(whole, rate, 1)
        overall, overall_last = logit(rate), logit(rate_last)
        origin = self._origin.share(week.origin, rate, SHRINK_ROWS)
        destination = self._destination.share(week.destination, rate, SHRINK_ROWS)
        traffic = np.bincount(week.origin, minlength=len(self._airports))
        angle = 2 * np.pi * week.hour / HOURS
        at_origin, at_destination = week.origin * HOURS + week.hour, week.destination * HOURS + week.hour
        columns = (
            np.sin(angle), np.cos(angle), week.hour < 5,
            week.weekday == 4, week.weekday == 5, week.weekday == 6, week.weekday == 0,
            np.log1p(week.miles.astype(np.float64)), week.miles / np.float32(1000),
            logit(self._hour.share(week.hour, rate, SHRINK_ROWS)) - overall,
            logit(self._weekday.share(week.weekday, rate, SHRINK_ROWS)) - overall,
            logit(origin) - overall, logit(destination) - overall,
            logit(self._route.share(week.route, (origin + destination) / 2, SHRINK_ROWS)) - overall,
            logit(self._origin_last.share(week.origin, rate_last, SHRINK_ROWS)) - overall_last,
            logit(self._destination_last.share(week.destination, rate_last, SHRINK_ROWS)) - overall_last,
            logit(self._origin_hour.share(at_origin, origin, SHRINK_CELL)) - overall,
            logit(self._destination_hour.share(at_destination, destination, SHRINK_CELL)) - overall,
            np.log1p(traffic[week.origin].astype(np.float64)),
        )  # fmt: skip
        return {name: np.asarray(column, dtype=np.float32) for name, column in zip(NAMES, columns, strict=True)}
