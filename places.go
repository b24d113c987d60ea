package stokehold

import (
	"context"
	"errors"
	"fmt"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// validatePlaces reports every fault of where things are said to be.
func (c Config) validatePlaces() []error {
	var faults []error
	for _, p := range []struct {
		name string
		events.Place
	}{{"Place", c.Place}, {"ColdPlace", c.ColdPlace}} {
		if err := label.CheckPlace(p.Place); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", p.name, err))
		}
	}
	return faults
}

// datasetLabels is a models.LabelSource over the App's catalog, which is there once the
// App is connected.
type datasetLabels struct{ *App }

func (d datasetLabels) DatasetLabels(ctx context.Context, dataset string) (label.Set, error) {
	if d.Store == nil {
		return nil, errors.New("this process has no catalog")
	}
	return d.Store.EffectiveLabels(ctx, dataset)
}

// LabelNode implements label.Nodes.
func (d datasetLabels) LabelNode(ctx context.Context, of label.Source) (label.Node, error) {
	if d.Store == nil {
		return label.Node{}, errors.New("this process has no catalog")
	}
	return d.Store.LabelNode(ctx, of)
}
