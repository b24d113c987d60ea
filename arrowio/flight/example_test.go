package flight_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
)

// One host gives out its batches; another opens one by its ref and reads all.
func Example() {
	ctx := context.Background()
	source := arrowio.ResolverFunc(func(_ context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
		if ref.Dataset != dataset || ref.Sequence > 3 {
			return nil, arrowio.ErrGone
		}
		return batch(ref.Sequence, 100), nil
	})
	token := flight.Token("made by a random generator")
	_, err := flight.Serve(ctx, flight.ServerConfig{Addr: "0.0.0.0:0", Source: source, Token: token[:4]})
	fmt.Println("refused:", errors.Is(err, flight.ErrConfig))

	token = "3f9c51f2b7f04f4e9a6d8d0c7b1e2a55"
	server, err := flight.Serve(ctx, flight.ServerConfig{Addr: "127.0.0.1:0", Source: source, Token: token})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = server.Close(ctx) }()

	client, err := flight.Dial(flight.Config{Token: token})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()

	rec, err := client.Resolve(ctx, arrowio.Ref{Dataset: dataset, Sequence: 2, Locations: []arrowio.Location{
		{Tier: arrowio.Hot, URI: server.URI().String(), Codec: "arrow-ipc"},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(rec.NumRows(), "rows")
	rec.Release()

	for b, err := range client.Range(ctx, flight.Request{URI: server.URI().String(), Dataset: dataset, From: 1, To: 9}) {
		if err != nil {
			fmt.Println("gone:", errors.Is(err, arrowio.ErrGone))
			break
		}
		fmt.Println("batch", b.Meta.Sequence)
	}
	// Output:
	// refused: true
	// 100 rows
	// batch 1
	// batch 2
	// batch 3
	// gone: true
}
