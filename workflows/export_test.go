package workflows

import (
	"slices"

	"go.temporal.io/sdk/workflow"

	"github.com/stokehold/stokehold/events"
)

// What tests of the trigger's workflow need to speak to it.
const (
	DeliverUpdate = deliverName
	EndedSignal   = endedSignal
	MaxDeliveries = maxDeliveries
	MaxSeen       = maxSeen
)

type (
	Delivery    = delivery
	TriggerArgs = triggerArgs
)

// NewDelivery is a delivery of events as the bridge makes it.
func NewDelivery(t Trigger, evs []*events.Event) Delivery { return newDelivery(t.settings(), evs) }

// DeliveredParams are the run parameters that the events of one delivery give.
func DeliveredParams(d Delivery) ([]byte, error) {
	var b backlog
	for i := range d.len() {
		b.add(d.at(i))
	}
	return b.params()
}

// Slug, KeyToken and SeenSet are tested on their own.
func Slug(s string, n int) string { return slug(s, n) }

func KeyToken(key string) string { return keyToken(key) }

type SeenSet = seenSet

func NewSeenSet(memory []byte) *SeenSet { return newSeenSet(memory) }

func (s *seenSet) Add(id string) bool { return s.add(eventHash(id)) }

func (s *seenSet) Bytes() []byte { return s.bytes() }

// RunPipelineReordered is the interpreter as a careless change would have it: it
// schedules stages in another order.
func RunPipelineReordered(ctx workflow.Context, args runArgs) (RunResult, error) {
	args.Definition.Graph = slices.Clone(args.Definition.Graph)
	slices.Reverse(args.Definition.Graph)
	return runPipeline(ctx, args)
}
