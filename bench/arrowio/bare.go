package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bare is the least that a hand-over can be: memory that both processes have
// mapped and touched before, eight bytes that say how much of it to read, and
// eight bytes back, in system calls that block. No batch, no lease, no check. What
// is above it is what a protocol takes; what is not is the machine's.
type bare struct {
	*process
	socket *os.File
	memory []byte
	dir    string
}

func startBare(child func(*env, context.Context) (*process, error)) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (handover, error) { return newBare(ctx, e, child) }
}

func newBare(ctx context.Context, e *env, child func(*env, context.Context) (*process, error)) (_ handover, err error) {
	b := &bare{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp("/dev/shm", "stokehold-bench-"); err != nil {
		return nil, err
	}
	size := int64(unix.Getpagesize())
	for _, s := range e.sizes {
		size = max(size, s)
	}
	path := filepath.Join(b.dir, "memory")
	if b.memory, err = mapFile(path, size, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		return nil, err
	}
	for i := range b.memory {
		b.memory[i] = byte(i)
	}
	if b.process, err = child(e, ctx); err != nil {
		return nil, err
	}
	if b.socket, err = unpolled(b.conn); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(b.socket, "%d %s\n", size, path); err != nil {
		return nil, err
	}
	_, err = readSum(b.socket) // mapped and touched
	return b, err
}

func (b *bare) close() (err error) {
	if b.socket != nil {
		err = b.socket.Close()
	}
	if b.process != nil {
		err = errors.Join(err, b.process.close())
	}
	if b.memory != nil {
		err = errors.Join(err, unix.Munmap(b.memory))
	}
	return errors.Join(err, os.RemoveAll(b.dir))
}

func (b *bare) measure(ctx context.Context, o order) ([]time.Duration, error) {
	want := touchPages(b.memory[:o.Size])
	return o.repeat(ctx, func() (time.Duration, error) {
		begun := time.Now()
		if err := writeSum(b.socket, uint64(o.Size)); err != nil {
			return 0, err
		}
		got, err := readSum(b.socket)
		took := time.Since(begun)
		if err != nil {
			return 0, b.why(err)
		}
		return took, checkSum(got, want)
	})
}

// readBare is the consumer.
func readBare(c *net.UnixConn) error {
	socket, err := unpolled(c)
	if err != nil {
		return err
	}
	line, err := newLines(socket)()
	if err != nil {
		return err
	}
	number, path, _ := strings.Cut(line, " ")
	size, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return err
	}
	memory, err := mapFile(path, size, unix.PROT_READ)
	if err != nil {
		return err
	}
	if err := writeSum(socket, touchPages(memory)); err != nil {
		return err
	}
	for {
		size, err := readSum(socket)
		if err != nil {
			return ended(err)
		}
		if err := writeSum(socket, touchPages(memory[:size])); err != nil {
			return err
		}
	}
}

// unpolled takes a socket out of Go's poller: reading it blocks in the kernel.
func unpolled(c *net.UnixConn) (*os.File, error) {
	f, err := c.File()
	if err != nil {
		return nil, err
	}
	_ = f.Fd() // makes it blocking, and the poller forgets it
	return f, c.Close()
}

// mapFile maps a file of that size, which it makes where it may write.
func mapFile(path string, size int64, protection int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the map stays
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), protection, unix.MAP_SHARED)
}

// touchPages reads a byte of every page, as touch does of a batch.
func touchPages(p []byte) uint64 {
	var sum uint64
	for i := 0; i < len(p); i += os.Getpagesize() {
		sum += uint64(p[i])
	}
	return sum
}
