package flights

import (
	"context"
	"time"

	"github.com/stokehold/stokehold/stages"
)

const (
	// FirstWeek is the first model's holdout: it is trained on the weeks before.
	FirstWeek = uint64(6)
	// FirstLive is the first week that is served. Predictions and Monitor begin
	// with it: the sequence of week w there is w - FirstLive.
	FirstLive = FirstWeek + 1
	// TrainWeeks is how many weeks before its holdout a model is trained on, as far
	// as there are as many. Six were worse over most settings of the detectors and
	// the gate: after a stormy month six weeks say that every month is stormy. See
	// README.md.
	TrainWeeks = uint64(10)
)

// RunParams are the parameters of a run of any of the pipelines: the newest week
// whose data it may use. Events that start runs have it in their data, or, as
// drift.detected, among the parameters that they propose.
type RunParams struct {
	Week uint64 `json:"week"`
}

func weekOf(task *stages.Task) (uint64, error) {
	var p struct {
		Week   *uint64 `json:"week"`
		Params struct {
			Week *uint64 `json:"week"`
		} `json:"params"`
	}
	if err := task.Decode(&p); err != nil {
		return 0, err
	}
	switch {
	case p.Params.Week != nil:
		return *p.Params.Week, nil
	case p.Week != nil:
		return *p.Week, nil
	}
	return 0, stages.Permanent(errNoWeek)
}

// upToWeek is all weeks until this run's: what is there already is kept.
func upToWeek(task *stages.Task) (uint64, uint64, error) {
	w, err := weekOf(task)
	return 0, w + 1, err
}

// thisWeek is the week that a run is about.
func thisWeek(task *stages.Task) (uint64, uint64, error) {
	w, err := weekOf(task)
	return w, w + 1, err
}

// trailing is the weeks before this run's that a model is trained on.
func trailing(task *stages.Task) (uint64, uint64, error) {
	w, err := weekOf(task)
	return w - min(w, TrainWeeks), w, err
}

// trailingAndThis adds the holdout.
func trailingAndThis(task *stages.Task) (uint64, uint64, error) {
	from, to, err := trailing(task)
	return from, to + 1, err
}

// at is the event time of what a run publishes: the end of its week.
func (d *Data) at(task *stages.Task) (time.Time, error) {
	w, err := weekOf(task)
	return d.End(w), err
}

// Rows is the number of flights in a week.
func (d *Data) Rows(ctx context.Context, week uint64) (int64, error) {
	return d.Source.Count(ctx, week)
}
