package governance

import (
	"context"
	"encoding/json"

	"github.com/stokehold/stokehold/events"
)

// Known are facts that are given and not asked for: for golden cases of policies,
// and for asking what a policy would say. What is nil is only what the event says.
type Known struct {
	Batch    *Batch   `json:"batch,omitempty"`
	Dataset  *Dataset `json:"dataset,omitempty"`
	Model    *Model   `json:"model,omitempty"`
	Champion *Model   `json:"champion,omitempty"`
	Run      *Run     `json:"run,omitempty"`
	Actor    *Actor   `json:"actor,omitempty"`
	Worker   *Worker  `json:"worker,omitempty"`
	Budget   *Budget  `json:"budget,omitempty"`
}

// Facts returns sources that lay what is given over what the event says, field by
// field.
func (k Known) Facts() Facts {
	return Facts{
		Batch: given(k.Batch), Dataset: given(k.Dataset), Model: given(k.Model), Champion: given(k.Champion),
		Run: given(k.Run), Actor: given(k.Actor), Worker: given(k.Worker), Budget: given(k.Budget),
	}
}

func given[T any](fact *T) func(context.Context, *events.Event, *T) error {
	if fact == nil {
		return nil
	}
	return func(_ context.Context, _ *events.Event, known *T) error {
		raw, err := json.Marshal(fact)
		if err != nil {
			return err
		}
		return json.Unmarshal(raw, known)
	}
}
