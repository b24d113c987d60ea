package handoff_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// One process publishes a batch in its arena; another, here the same, reads it in
// place.
func Example() {
	if err := share(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 4096 rows of 42
	// 0 leases after the release
}

func share(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	run := filepath.Join(dir, "run")

	// The owner.
	host := &shm.Host{}
	arena, err := shm.New(shm.Config{Bytes: 1 << 20})
	if err != nil {
		return err
	}
	if err := host.Add(arena); err != nil {
		return err
	}
	server, err := handoff.Serve(handoff.ServerConfig{Host: host, Dir: run})
	if err != nil {
		return err
	}
	numbers := uniform(4096, 42)
	defer numbers.Release()
	slot, err := arena.Put(ctx, numbers, nil)
	if err != nil {
		return err
	}
	ref := arrowio.Ref{Dataset: "numbers", Locations: []arrowio.Location{{Tier: arrowio.Hot, URI: slot.String()}}}

	// The reader, who was told of ref.
	peers := handoff.NewPeers(handoff.PeersConfig{Dir: run})
	batch, err := peers.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	v, err := value(batch)
	if err != nil {
		return err
	}
	fmt.Println(batch.NumRows(), "rows of", v)
	batch.Release()
	if err := peers.Close(); err != nil {
		return err
	}

	if err := server.Close(ctx); err != nil { // waits until readers have let go
		return err
	}
	fmt.Println(arena.Stats().Leases, "leases after the release")
	return host.Close()
}
