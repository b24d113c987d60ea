package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/stokehold/stokehold/cmd/internal/config"
)

const reachTimeout = 5 * time.Second

// reach tries to open a connection to each configured server. The error is one
// line for the first that nobody answers for.
func reach(ctx context.Context, cfg config.Config) error {
	return reachAll(ctx, cfg, natsOf(cfg),
		target{"Temporal", "temporal.address", "TEMPORAL_ADDRESS", "7233", config.Endpoint(cfg.Temporal.Address)},
		target{"S3", "s3.endpoint", "S3_ENDPOINT", "", cfg.S3.Endpoint})
}

// reachNATS is reach for what needs nothing but NATS.
func reachNATS(ctx context.Context, cfg config.Config) error { return reachAll(ctx, cfg, natsOf(cfg)) }

type target struct {
	name, key, variable, port string
	at                        config.Endpoint
}

func natsOf(cfg config.Config) target {
	return target{"NATS", "nats.url", "NATS_URL", "4222", cfg.NATS.URL}
}

func reachAll(ctx context.Context, cfg config.Config, targets ...target) error {
	for _, s := range targets {
		if s.at == "" {
			continue
		}
		addr, err := s.at.HostPort(s.port)
		if err != nil {
			return fmt.Errorf("%s: %w", s.key, err)
		}
		d := net.Dialer{Timeout: reachTimeout}
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("cannot reach %s at %s (from %s): %s: start it with 'stokehold dev', or set %s",
				s.name, s.at, cfg.Source(s.key), why(err), s.variable)
		}
		_ = conn.Close() // nothing was sent
	}
	return nil
}

// why is the reason of a failed dial without the addresses that the line names
// already.
func why(err error) string {
	var dns *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &dns):
		return "no such host"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "no answer within " + reachTimeout.String()
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}
