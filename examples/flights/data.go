// Package flights is a complete pipeline on real data: which of the flights of
// January to June 2001 were late by more than 15 minutes? It trains on the first
// weeks, then serves, watches and retrains week by week. See README.md; copy what
// you need.
package flights

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/stages/ingest"
)

// Datasets of the example; each has one batch a week, sequence = week from 0.
const (
	Schedule    = "flights/schedule"    // known when a flight leaves: date, distance, origin, destination
	Labels      = "flights/labels"      // delay on arrival, in minutes; same rows, same order
	Features    = "flights/features"    // float32 columns, same rows, same order
	Predictions = "flights/predictions" // probabilities of the served and the first model
	Monitor     = "flights/monitor"     // one row a week: metrics and the detectors' state
)

// Model is the name of the model that the pipelines make versions of.
const Model = "flights"

// LateMinutes is the delay on arrival beyond which a flight is late.
const LateMinutes = 15

// Week is the span of one batch.
const Week = 7 * 24 * time.Hour

//go:embed data/flights-2001.parquet
var embedded []byte

// FileSchema is what a data file must have; further columns are ignored.
func FileSchema() *arrow.Schema {
	return arrow.NewSchema([]arrow.Field{
		{Name: "date", Type: &arrow.TimestampType{Unit: arrow.Microsecond}}, // local time of departure
		{Name: "delay", Type: arrow.PrimitiveTypes.Int64},                   // on arrival, minutes, negative when early
		{Name: "distance", Type: arrow.PrimitiveTypes.Int64},                // miles
		{Name: "origin", Type: arrow.BinaryTypes.String},                    // IATA code
		{Name: "destination", Type: arrow.BinaryTypes.String},
	}, nil)
}

// Data is the flights to run on, by week.
type Data struct {
	Source *ingest.Source
	Weeks  uint64
	Start  time.Time // midnight at which week 0 begins
}

// Open reads and checks a Parquet or CSV file as a whole; path "" is the data
// that comes with the example. Week 0 begins on the day of the earliest flight.
// What is wrong with the file is an *ingest.Error.
func Open(ctx context.Context, path string) (*Data, error) {
	cfg := ingest.Config{Path: path, Schema: FileSchema(), Key: ingest.ByTime{Column: "date", Width: Week, Max: 520}}
	if path == "" {
		cfg.Data, cfg.Name = embedded, "flights-2001.parquet"
	}
	src, err := ingest.NewSource(cfg)
	if err != nil {
		return nil, err
	}
	weeks, err := src.Len(ctx)
	if err != nil {
		return nil, err
	}
	if least := FirstWeek + 2; weeks < least {
		return nil, fmt.Errorf("%s is too short: %d of the %d weeks that are needed, %d to train on, one to evaluate, one to go live", src.Name(), weeks, least, FirstWeek)
	}
	first, err := src.Start(ctx, 0)
	if err != nil {
		return nil, err
	}
	return &Data{Source: src, Weeks: weeks, Start: first.Truncate(24 * time.Hour)}, nil
}

// End is the moment at which a week is over: the event time of its events.
func (d *Data) End(week uint64) time.Time { return d.Start.Add(time.Duration(week+1) * Week) }
