package flights

import (
	"errors"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/stages/drift"
)

// Event types of the example, beside the standard ones.
const (
	TypeDataArrived   = "data.arrived"
	TypeScored        = "predictions.published"
	TypeLabelsArrived = "labels.arrived"
	TypeWeekClosed    = "week.closed"
	subject           = "flights"
	feederSource      = "/stokehold/examples/flights/feed"
)

var errNoWeek = errors.New("flights: no parameter \"week\": start the run with {\"week\": N}")

// DataArrived says that a week's flights have left.
type DataArrived struct {
	Week uint64 `json:"week"`
	Rows int64  `json:"rows"`
}

// Scored says that a week's predictions are in the dataset.
type Scored struct {
	Week    uint64 `json:"week"`
	Rows    int64  `json:"rows"`
	Version string `json:"version"` // that served them
	Frozen  string `json:"frozen"`  // the first model
}

// LabelsArrived says that a week's delays are known.
type LabelsArrived struct {
	Week uint64 `json:"week"`
	Rows int64  `json:"rows"`
}

// EventTypes are the example's own, for events.NewRegistry. week.closed carries
// the monitor's verdict on a week.
func EventTypes() []events.Type {
	return []events.Type{
		{Name: TypeDataArrived, Description: "a week's flights have left: score them", Data: DataArrived{}},
		{Name: TypeScored, Description: "a week's predictions are in the dataset", Data: Scored{}},
		{Name: TypeLabelsArrived, Description: "a week's delays are known: watch the model", Data: LabelsArrived{}},
		{Name: TypeWeekClosed, Description: "what the monitor found in a week", Data: drift.Report{}},
	}
}
