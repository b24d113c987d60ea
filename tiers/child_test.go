package tiers_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

// children are what other processes of these tests do, by the variable that starts them
// and holds the server, the directories, and what else they need.
func children() map[string]func(context.Context, *tiers.Store, []string) error {
	return map[string]func(context.Context, *tiers.Store, []string) error{moverEnv: moverChild, collectorEnv: collectorChild}
}

// child is a process that does what env stands for on the world's server and directories.
func (w *world) child(env string, args ...string) *exec.Cmd {
	c := exec.CommandContext(w.ctx, os.Args[0])
	c.Env = append(os.Environ(), env+"="+strings.Join(append([]string{w.conn.ConnectedUrl(), w.warm, w.cold}, args...), "|"))
	return c
}

// runIfChild does what a child is for, and exits, in a process that is one. It closes
// nothing: such a process is not told to end.
func runIfChild() {
	for env, do := range children() {
		spec := os.Getenv(env)
		if spec == "" {
			continue
		}
		f := strings.Split(spec, "|")
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		s, err := childStore(ctx, f[0], f[1], f[2])
		if err == nil {
			err = do(ctx, s, f[3:])
		}
		cancel()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func childStore(ctx context.Context, url, warm, cold string) (*tiers.Store, error) {
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, err
	}
	bus, err := events.Open(ctx, events.Config{Conn: nc, Judge: events.AllowAll()})
	if err != nil {
		return nil, err
	}
	dir, err := objectdir.Open(cold)
	if err != nil {
		return nil, err
	}
	return tiers.Open(ctx, tiers.Config{Conn: nc, Bus: bus, Host: &shm.Host{}, Warm: warm, Cold: dir})
}
