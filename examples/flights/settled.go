package flights

// TypeWeekSettled is the example's event that sums up a week once the loop has
// dealt with it, retraining included.
const TypeWeekSettled = "week.settled"

// WeekSettled is a week's outcome, in the words of the demo's report.
type WeekSettled struct {
	Week       uint64  `json:"week"`
	Rows       int64   `json:"rows"`
	Frozen     Quality `json:"frozen"` // the first model
	Loop       Quality `json:"loop"`   // the champion of that week
	Drift      bool    `json:"drift"`
	Retrained  bool    `json:"retrained"`
	Promoted   bool    `json:"promoted"`
	Reason     string  `json:"reason"`
	Model      string  `json:"model"`                // version that scored the week
	Challenger string  `json:"challenger,omitempty"` // version that the retraining made
}

// Quality is a model's quality on one week.
type Quality struct {
	LogLoss float64 `json:"logloss"` // mean, nats
	AUC     float64 `json:"auc"`     // 0 where the week has one class
}

func (o Outcome) settled() WeekSettled {
	return WeekSettled{
		Week: o.Key, Rows: o.Rows,
		Frozen: Quality{o.FrozenLogLoss, o.FrozenAUC}, Loop: Quality{o.LogLoss, o.AUC},
		Drift: o.Drift, Retrained: o.Retrained, Promoted: o.Promoted, Reason: o.Reason,
		Model: o.Version, Challenger: o.Challenger,
	}
}
