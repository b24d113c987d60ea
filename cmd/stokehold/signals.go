package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

// errInterrupted is the cause of a context that the first interrupt ended.
var errInterrupted = errors.New("interrupted")

// process is the environment of this process.
func process() *environment {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	e := &environment{
		In: os.Stdin, Keys: os.Stdin, Out: os.Stdout, Err: os.Stderr, Environ: os.Environ(), Signals: signals, Now: time.Now,
		Terminal: term.IsTerminal(int(os.Stdout.Fd())),
	}
	// A live view may have the terminal in raw mode when the process is ended at once.
	cooked, err := term.GetState(int(os.Stdin.Fd()))
	e.Exit = func(code int) {
		if err == nil {
			_ = term.Restore(int(os.Stdin.Fd()), cooked)
		}
		if e.Terminal {
			fmt.Fprint(os.Stdout, "\x1b[?25h\r\n") // the cursor, too
		}
		os.Exit(code)
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		e.Keys = nil
	}
	if e.Terminal {
		if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			e.Width = w
		}
	}
	return e
}

// interruptible ends the context on the first signal and the process on the
// second.
func interruptible(env *environment) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-env.Signals:
			}
			if n > 0 {
				fmt.Fprintln(env.Err, "stokehold: killed")
				env.Exit(exitKilled)
				return
			}
			cancel(errInterrupted)
		}
	}()
	return ctx, func() { close(done); cancel(nil) }
}
