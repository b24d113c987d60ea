package main

import (
	"context"
	"errors"

	"github.com/stokehold/stokehold/cmd/internal/config"
	"github.com/stokehold/stokehold/cmd/internal/report"
	"github.com/stokehold/stokehold/workflows"
)

var errNoPipelines = errors.New("this binary was built without pipelines")

// newPlatform is what the binary consists of.
func newPlatform() platform {
	return embedded(platform{
		Pipelines: func() ([]*workflows.Definition, error) { return nil, nil },
		Connect:   func(context.Context, config.Config) (system, error) { return nil, errNoPipelines },
		Host:      func(context.Context, config.Config, hosting) (system, error) { return nil, errNoPipelines },
		Feed: func(context.Context, system, hosting) (report.Data, error) {
			return report.Data{}, errNoPipelines
		},
	})
}
