package natstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Scratch is for Example functions, which have no testing.TB: it calls f with a
// connection to a server of its own and a directory, removes both afterwards,
// and returns f's error joined with those of cleaning up. ctx ends after 30 s.
func Scratch(f func(ctx context.Context, conn *nats.Conn, dir string) error) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "stokehold-example-")
	if err != nil {
		return fmt.Errorf("natstest: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		return fmt.Errorf("natstest: %w", err)
	}
	srv.Start()
	defer func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	}()
	conn, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		return fmt.Errorf("natstest: %w", err)
	}
	defer conn.Close()
	return f(ctx, conn, dir)
}
