package models_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/models/safetensors"
)

// A model is registered, promoted, and found by its alias.
func ExampleRegistry() {
	if err := natstest.Scratch(registryExample); err != nil {
		fmt.Println(err)
	}
	// Output:
	// logistic/v1 logloss 0.41 promoted
	// conflict: true
	// coefficients [0.5 -1.25]
}

func registryExample(ctx context.Context, conn *nats.Conn, dir string) (err error) {
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll(), MaxBytes: 64 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close(ctx)) }()

	registry, err := models.Open(ctx, models.Config{Conn: conn, Bus: bus, Dir: dir + "/models"})
	if err != nil {
		return err
	}
	artifact, err := safetensors.Encode(safetensors.File{Tensors: []safetensors.Tensor{
		safetensors.Float64s("coefficients", []int64{2}, []float64{0.5, -1.25}),
	}})
	if err != nil {
		return err
	}
	v, err := registry.Register(ctx, models.Version{
		Model: "flights/late", Format: models.Safetensors, Kind: "logistic/v1",
		Metrics: map[string]float64{"logloss": 0.41},
	}, artifact)
	if err != nil {
		return err
	}
	p := models.Promotion{Model: v.Model, Alias: models.Champion, ID: v.ID, Run: "run-1", Reason: "the first"}
	if err := registry.Promote(ctx, p); err != nil {
		return err
	}
	champion, err := registry.Alias(ctx, "flights/late", models.Champion)
	if err != nil {
		return err
	}
	loss, err := champion.Metric("logloss")
	if err != nil {
		return err
	}
	fmt.Println(champion.Kind, "logloss", loss, champion.Status)

	p.Alias, p.Previous = models.Challenger, v.ID // nothing is there yet
	fmt.Println("conflict:", errors.Is(registry.Promote(ctx, p), models.ErrConflict))

	raw, err := registry.Artifact(ctx, champion)
	if err != nil {
		return err
	}
	f, err := safetensors.Decode(raw)
	if err != nil {
		return err
	}
	for _, t := range f.Tensors {
		values, err := t.Float64s()
		if err != nil {
			return err
		}
		fmt.Println(t.Name, values)
	}
	return nil
}
