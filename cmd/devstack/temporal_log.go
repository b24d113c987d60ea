package devstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"

	"go.temporal.io/server/common/log"
	"go.temporal.io/server/common/log/tag"
)

// errListen marks a fatal fault of the Temporal server that another choice of ports may cure.
var errListen = errors.New("address already in use")

// temporalLogger writes the server's log to a file. Where the server asks for the end of the process (Fatal), it
// ends the calling goroutine instead and reports the fault: a library must not exit its program.
type temporalLogger struct {
	log   *slog.Logger
	fault *temporalFault
}

type temporalFault struct {
	mu    sync.Mutex
	err   error         // the first fatal fault
	fatal chan struct{} // closed with it
	late  func(error)   // told of a fault after the start
	ready bool
}

var (
	_ log.Logger     = temporalLogger{}
	_ log.WithLogger = temporalLogger{}
)

func newTemporalLogger(l *slog.Logger, late func(error)) temporalLogger {
	return temporalLogger{log: l, fault: &temporalFault{fatal: make(chan struct{}), late: late}}
}

// started says that faults from now on go to the stack, for nobody waits in guard any more.
func (l temporalLogger) started() {
	l.fault.mu.Lock()
	l.fault.ready = true
	err := l.fault.err
	l.fault.mu.Unlock()
	if err != nil {
		l.fault.late(err)
	}
}

// guard runs f on its own goroutine and gives its error, or the fatal fault or panic that ended it. A fault on
// another goroutine ends the wait too, since f may then never return.
func (l temporalLogger) guard(f func() error) error {
	done := make(chan error, 1)
	go func() {
		err := errors.New("the server ended its start")
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("panic: %v", r)
			}
			done <- err
		}()
		err = f()
	}()
	select {
	case err := <-done:
		if fault := l.fault.get(); fault != nil {
			return fault
		}
		return err
	case <-l.fault.fatal:
		return l.fault.get()
	}
}

func (f *temporalFault) get() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *temporalFault) set(err error) {
	f.mu.Lock()
	first, ready := f.err == nil, f.ready
	if first {
		f.err = err
		close(f.fatal)
	}
	f.mu.Unlock()
	if first && ready {
		f.late(err)
	}
}

func (l temporalLogger) write(level slog.Level, msg string, tags []tag.Tag) {
	ctx := context.Background()
	if l.log.Enabled(ctx, level) {
		l.log.LogAttrs(ctx, level, msg, attrs(tags)...)
	}
}

func attrs(tags []tag.Tag) []slog.Attr {
	out := make([]slog.Attr, len(tags))
	for i, t := range tags {
		out[i] = slog.Any(t.Key(), t.Value())
	}
	return out
}

func (l temporalLogger) Debug(msg string, tags ...tag.Tag)  { l.write(slog.LevelDebug, msg, tags) }
func (l temporalLogger) Info(msg string, tags ...tag.Tag)   { l.write(slog.LevelInfo, msg, tags) }
func (l temporalLogger) Warn(msg string, tags ...tag.Tag)   { l.write(slog.LevelWarn, msg, tags) }
func (l temporalLogger) Error(msg string, tags ...tag.Tag)  { l.write(slog.LevelError, msg, tags) }
func (l temporalLogger) DPanic(msg string, tags ...tag.Tag) { l.write(slog.LevelError, msg, tags) }

// Panic implements log.Logger. The server recovers from its own panics where it expects them.
func (l temporalLogger) Panic(msg string, tags ...tag.Tag) {
	l.write(slog.LevelError, msg, tags)
	panic(msg)
}

// Fatal implements log.Logger without ending the process.
func (l temporalLogger) Fatal(msg string, tags ...tag.Tag) {
	l.write(slog.LevelError, msg, tags)
	var b strings.Builder
	b.WriteString(msg)
	for _, t := range tags {
		fmt.Fprintf(&b, " %s=%v", t.Key(), t.Value())
	}
	err := errors.New(b.String())
	if strings.Contains(b.String(), errListen.Error()) {
		// The server hands its listener's fault over as text in a tag.
		err = fmt.Errorf("%w: %w", errListen, err)
	}
	l.fault.set(err)
	runtime.Goexit()
}

// With implements log.WithLogger.
func (l temporalLogger) With(tags ...tag.Tag) log.Logger {
	args := make([]any, 0, len(tags))
	for _, a := range attrs(tags) {
		args = append(args, a)
	}
	return temporalLogger{log: l.log.With(args...), fault: l.fault}
}
