package devstack

import (
	"errors"
	"log/slog"
	"os"
	"sync"
)

// logLimitBytes bounds one log file; with the one kept before it a server's log takes at most twice as much.
const logLimitBytes = 8 << 20

// logFile is an append-only file that moves itself aside (to NAME.1) when it is full. Safe for concurrent use.
// A write that fails is dropped: a server must not stop because its log can't be written.
type logFile struct {
	mu    sync.Mutex
	path  string
	f     *os.File
	size  int64
	limit int64
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path, limit: logLimitBytes}
	if err := l.open(); err != nil {
		return nil, &StateError{Op: "write", Path: path, Err: err}
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size = f, info.Size()
	return nil
}

// Write implements io.Writer and always takes all of p.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return len(p), nil
	}
	if l.size > 0 && l.size+int64(len(p)) > l.limit {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, l.path+".1")
		if err := l.open(); err != nil {
			return len(p), nil
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

func newLogger(l *logFile) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelInfo}))
}
