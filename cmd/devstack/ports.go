package devstack

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Free ports are taken from below the range from which the kernel gives out ports of outgoing connections, so
// that no connection of this or another program can take one between its choice and its use.
const (
	freePortLow   = 15000
	freePortHigh  = 32000
	freePortTries = 500
)

// freePorts finds n different ports that nobody listens on. Another program may still take one before it is used.
func freePorts(ctx context.Context, n int) ([]int, error) {
	var ports []int
	var held []net.Listener
	var lc net.ListenConfig
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for range freePortTries {
		port := freePortLow + rand.IntN(freePortHigh-freePortLow)
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		held = append(held, l)
		if ports = append(ports, port); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("devstack: no %d free ports between %d and %d on 127.0.0.1", n, freePortLow, freePortHigh)
}

// checkPort gives a PortError where the port can't be bound. Port 0 always can.
func checkPort(ctx context.Context, service string, port int) error {
	if port == 0 {
		return nil
	}
	l, err := listen(ctx, service, port)
	if err != nil {
		return err
	}
	return l.Close()
}

func listen(ctx context.Context, service string, port int) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	var op *net.OpError
	if errors.As(err, &op) {
		return nil, &PortError{Service: service, Port: port, Err: op.Err}
	}
	return l, err
}
