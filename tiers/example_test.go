package tiers_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

// Three batches are written, one is moved to the cold tier, and all are read.
func ExampleStore() {
	if err := natstest.Scratch(storeExample); err != nil {
		fmt.Println(err)
	}
	// Output:
	// flights/schedule#0 hot 100 rows, first id 0
	// flights/schedule#1 warm 100 rows, first id 1000000
	// flights/schedule#2 hot 100 rows, first id 2000000
	// {Hot:2 Warm:1 Cold:0 Moved:1}
}

func storeExample(ctx context.Context, conn *nats.Conn, dir string) (err error) {
	bus, err := events.Open(ctx, events.Config{Conn: conn, Judge: events.AllowAll(), MaxBytes: 64 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bus.Close(ctx)) }()

	arena, err := shm.New(shm.Config{Bytes: 1 << 20})
	if err != nil {
		return err
	}
	host := &shm.Host{}
	defer func() { err = errors.Join(err, host.Close()) }()
	cold, err := objectdir.Open(dir + "/cold")
	if err != nil {
		return err
	}
	store, err := tiers.Open(ctx, tiers.Config{Conn: conn, Bus: bus, Host: host, Arena: arena, Warm: dir + "/warm", Cold: cold})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close(ctx)) }()

	w, err := store.Writer(ctx, "flights/schedule", schema, tiers.Fence{Run: "run-1", Stage: "ingest", Attempt: 1})
	if err != nil {
		return err
	}
	for week := range uint64(3) {
		rec := batch(week, 100)
		_, err := w.WriteAt(ctx, w.Base()+week, rec)
		rec.Release()
		if err != nil {
			return err
		}
	}
	if err := w.Seal(ctx); err != nil {
		return err
	}
	// The hot copy goes after the move; the warm one stays.
	if _, err := store.Move(ctx, tiers.Migration{Dataset: "flights/schedule", Sequence: 1}, nil); err != nil {
		return err
	}
	for b, err := range store.Batches(ctx, "flights/schedule", 0, tiers.End, false) {
		if err != nil {
			return err
		}
		fmt.Println(b.Ref.ID(), b.Tier, b.Record.NumRows(), "rows, first id", b.Record.Column(0).(*array.Int64).Value(0))
	}
	s := store.Stats()
	fmt.Printf("{Hot:%d Warm:%d Cold:%d Moved:%d}\n", s.Hot, s.Warm, s.Cold, s.Moved)
	return nil
}
