package tiers

import (
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// source is the CloudEvents source of the events that the data plane publishes.
const source = "/stokehold/tiers"

// batchEvent announces e; its id is the batch's, so that publishing it again
// stores nothing.
func (w *Writer) batchEvent(e entry) (events.Event, error) {
	data := events.BatchPublished{
		Dataset: e.Ref.Dataset, Sequence: int64(e.Ref.Sequence), Rows: e.Ref.Rows,
		BodyBytes: e.Ref.BodyBytes, Fingerprint: e.Ref.Fingerprint,
	}
	if l, ok := e.Ref.In(arrowio.Warm); ok {
		data.SHA256 = l.SHA256
	}
	if len(e.Ref.Locations) > 0 {
		data.Tier, data.URI = string(e.Ref.Locations[0].Tier), e.Ref.Locations[0].URI
	}
	return w.newEvent(events.TypeBatchPublished, e.Ref.ID(), e.Committed, e.Labels, data)
}

func (w *Writer) newEvent(typ, id string, at time.Time, labels label.Set, data any) (events.Event, error) {
	ev, err := events.New(typ, source, w.dataset, id, at, data)
	if err != nil {
		return ev, err
	}
	ev.SetExtension(events.ExtRun, w.head.Fence.Run)
	ev.SetExtension(events.ExtStage, w.head.Fence.Stage)
	setLabels(&ev, labels)
	return ev, nil
}
