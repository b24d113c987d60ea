package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

// Arrow IPC over a Unix stream socket: a stream for each size, whose batches are
// answered with their sum.

// streamBuffer gathers the small writes and reads of a message; bodies pass it by.
const streamBuffer = 64 << 10

type streaming struct{ *process }

func startStream(child func(e *env, ctx context.Context) (*process, error)) func(context.Context, *env) (handover, error) {
	return started(child, func(p *process) handover { return streaming{p} })
}

// started starts a child that says a line when it is ready, and makes a case of it.
func started(child func(e *env, ctx context.Context) (*process, error), of func(*process) handover) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (handover, error) {
		p, err := child(e, ctx)
		if err != nil {
			return nil, err
		}
		if _, err := p.line(); err != nil {
			return nil, errors.Join(err, p.close())
		}
		return of(p), nil
	}
}

func (s streaming) measure(ctx context.Context, o order) ([]time.Duration, error) {
	batch := newTable(o.Size).build(memory.DefaultAllocator)
	defer batch.Release()
	want := touch(batch)
	out := bufio.NewWriterSize(s.conn, streamBuffer)
	w := ipc.NewWriter(out, ipc.WithSchema(newSchema()))
	took, err := o.repeat(ctx, func() (time.Duration, error) {
		begun := time.Now()
		if err := w.Write(batch); err != nil {
			return 0, err
		}
		if err := out.Flush(); err != nil {
			return 0, err
		}
		got, err := readSum(s.lines)
		took := time.Since(begun)
		if err != nil {
			return 0, err
		}
		return took, checkSum(got, want)
	})
	if err := errors.Join(err, w.Close(), out.Flush()); err != nil {
		return nil, s.why(err)
	}
	return took, nil
}

func readSum(r io.Reader) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

func writeSum(w io.Writer, sum uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], sum)
	_, err := w.Write(b[:])
	return err
}

// readStreams is the consumer.
func readStreams(c *net.UnixConn) error {
	if _, err := fmt.Fprintln(c, "ready"); err != nil {
		return err
	}
	in := bufio.NewReaderSize(c, streamBuffer)
	for {
		if _, err := in.Peek(1); err != nil {
			return ended(err)
		}
		r, err := ipc.NewReader(in)
		if err != nil {
			return err
		}
		for r.Next() {
			if err := writeSum(c, touch(r.RecordBatch())); err != nil {
				return err
			}
		}
		err = r.Err()
		r.Release()
		if err != nil {
			return err
		}
	}
}

// ended is nil if a child's socket ended as it should: the other side is done.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return err
}

// shmFile is an Arrow IPC stream in a new file of /dev/shm for each batch, whose
// name goes through a socket.
type shmFile struct{ *process }

func startShmFile(ctx context.Context, e *env) (handover, error) {
	p, err := e.script(ctx, "shmfile.py")
	if err != nil {
		return nil, err
	}
	if _, err := p.line(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return shmFile{p}, nil
}

func (s shmFile) measure(ctx context.Context, o order) (took []time.Duration, err error) {
	batch := newTable(o.Size).build(memory.DefaultAllocator)
	defer batch.Release()
	want := touch(batch)
	dir, err := os.MkdirTemp("/dev/shm", "stokehold-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, "batch")
	return o.repeat(ctx, func() (time.Duration, error) {
		begun := time.Now()
		if err := writeFile(path, batch); err != nil {
			return 0, err
		}
		if _, err := fmt.Fprintln(s.conn, path); err != nil {
			return 0, err
		}
		got, err := readSum(s.lines)
		took := time.Since(begun)
		if err != nil {
			return 0, s.why(err)
		}
		return took, errors.Join(checkSum(got, want), os.Remove(path))
	})
}

func writeFile(path string, batch arrow.RecordBatch) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(f, streamBuffer)
	w := ipc.NewWriter(out, ipc.WithSchema(batch.Schema()))
	return errors.Join(w.Write(batch), w.Close(), out.Flush(), f.Close())
}
