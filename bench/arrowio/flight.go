package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Arrow Flight on loopback: DoPut to a server in the consumer, which answers each
// batch with its sum as PutResult metadata.

type flying struct {
	*process
	client flight.Client
	calls  bool // a call for each batch, instead of one that stays open
}

func startFlight(child func(e *env, ctx context.Context) (*process, error), calls bool) func(context.Context, *env) (handover, error) {
	return func(ctx context.Context, e *env) (handover, error) {
		p, err := child(e, ctx)
		if err != nil {
			return nil, err
		}
		addr, err := p.line()
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		c, err := flight.NewClientWithMiddlewareCtx(ctx, addr, nil, nil,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		return flying{p, c, calls}, nil
	}
}

func (f flying) close() error { return errors.Join(f.client.Close(), f.process.close()) }

// call is one DoPut.
type call struct {
	stream flight.FlightService_DoPutClient
	w      *flight.Writer
}

func (f flying) open(ctx context.Context) (call, error) {
	s, err := f.client.DoPut(ctx)
	if err != nil {
		return call{}, err
	}
	w := flight.NewRecordWriter(s, ipc.WithSchema(newSchema()))
	w.SetFlightDescriptor(&flight.FlightDescriptor{Type: flight.DescriptorPATH, Path: []string{"batch"}})
	return call{s, w}, nil
}

func (c call) put(batch arrow.RecordBatch) (uint64, error) {
	if err := c.w.Write(batch); err != nil {
		return 0, err
	}
	r, err := c.stream.Recv()
	if err != nil {
		return 0, err
	}
	if len(r.AppMetadata) != 8 {
		return 0, fmt.Errorf("answer of %d bytes", len(r.AppMetadata))
	}
	return binary.LittleEndian.Uint64(r.AppMetadata), nil
}

func (c call) end() error {
	if err := errors.Join(c.w.Close(), c.stream.CloseSend()); err != nil {
		return err
	}
	if _, err := c.stream.Recv(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (f flying) measure(ctx context.Context, o order) ([]time.Duration, error) {
	ctx, cancel := context.WithCancel(ctx) // ends a call that an error left open
	defer cancel()
	batch := newTable(o.Size).build(memory.DefaultAllocator)
	defer batch.Release()
	want := touch(batch)
	var c call
	if !f.calls {
		var err error
		if c, err = f.open(ctx); err != nil {
			return nil, f.why(err)
		}
	}
	took, err := o.repeat(ctx, func() (time.Duration, error) {
		begun := time.Now()
		if f.calls {
			var err error
			if c, err = f.open(ctx); err != nil {
				return 0, err
			}
		}
		got, err := c.put(batch)
		took := time.Since(begun)
		if err != nil {
			return 0, err
		}
		if f.calls {
			if err := c.end(); err != nil {
				return 0, err
			}
		}
		return took, checkSum(got, want)
	})
	if err == nil && !f.calls {
		err = c.end()
	}
	if err != nil {
		return nil, f.why(err)
	}
	return took, nil
}

// serveFlight is the consumer.
func serveFlight(c *net.UnixConn) error {
	s := flight.NewServerWithMiddleware(nil, grpc.MaxRecvMsgSize(math.MaxInt32))
	if err := s.Init("127.0.0.1:0"); err != nil {
		return err
	}
	s.RegisterFlightService(&putServer{})
	if _, err := fmt.Fprintln(c, s.Addr()); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, c) // until the producer is done
		s.Shutdown()
	}()
	return s.Serve()
}

type putServer struct{ flight.BaseFlightServer }

func (*putServer) DoPut(stream flight.FlightService_DoPutServer) error {
	r, err := flight.NewRecordReader(stream)
	if err != nil {
		return err
	}
	defer r.Release()
	for r.Next() {
		sum := binary.LittleEndian.AppendUint64(nil, touch(r.RecordBatch()))
		if err := stream.Send(&flight.PutResult{AppMetadata: sum}); err != nil {
			return err
		}
	}
	return r.Err()
}
