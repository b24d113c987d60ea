package flight_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	libflight "github.com/apache/arrow-go/v18/arrow/flight"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"google.golang.org/grpc"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// BenchmarkOpen opens one batch, and reads a value of each of its pages: in an
// arena of this process, over Flight on loopback with the checksum of its ref,
// without one, with the library's own server and client (which check nothing),
// and as part of a range.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20, 16 << 20} {
		s := &shelf{frames: [][]byte{large(b, size)}}
		s.digest = digest(s.frames[0]) // as a store of package tiers has it
		for range 63 {
			s.frames = append(s.frames, s.frames[0])
		}
		rec, err := arrowio.Decode(s.frames[0], nil)
		if err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprintf("%dKiB", size>>10)
		b.Run("in-process/"+name, func(b *testing.B) { benchArena(b, rec, size) })
		srv := serve(b, flight.ServerConfig{Source: s})
		c := dial(b, flight.Config{})
		ref := s.ref(b, 0, srv.URI())
		ref.Fingerprint = arrowio.Fingerprint(rec.Schema())
		b.Run("flight/"+name, func(b *testing.B) { benchResolve(b, c, ref, size) })
		bare := ref
		bare.Locations = ref.Locations[:1]
		b.Run("flight-validated/"+name, func(b *testing.B) { benchResolve(b, c, bare, size) })
		b.Run("library/"+name, func(b *testing.B) { benchLibrary(b, rec, size) })
		b.Run("range/"+name, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for left := b.N; left > 0; left -= 64 {
				r := flight.Request{URI: srv.URI().String(), Dataset: dataset, To: uint64(min(left, 64))}
				for got, err := range c.Range(b.Context(), r) {
					if err != nil {
						b.Fatal(err)
					}
					touch(got.Record)
				}
			}
		})
		rec.Release()
	}
}

var touched int64

func touch(rec arrow.RecordBatch) {
	v := rec.Column(0).(*array.Int64).Int64Values()
	for i := 0; i < len(v); i += 512 {
		touched += v[i]
	}
}

func benchArena(b *testing.B, rec arrow.RecordBatch, size int) {
	arena, err := shm.New(shm.Config{Bytes: int64(size) + 1<<20})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = arena.Close() }()
	h, err := arena.Put(b.Context(), rec, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		l, err := arena.Lease(h, "bench")
		if err != nil {
			b.Fatal(err)
		}
		got, err := l.Batch(arrowio.Trusted())
		if err != nil {
			b.Fatal(err)
		}
		touch(got)
		got.Release()
	}
}

func benchResolve(b *testing.B, c *flight.Client, ref arrowio.Ref, size int) {
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		got, err := c.Resolve(b.Context(), ref)
		if err != nil {
			b.Fatal(err)
		}
		touch(got)
		got.Release()
	}
}

// plainServer is what one writes with the library alone.
type plainServer struct {
	libflight.BaseFlightServer
	rec arrow.RecordBatch
}

func (s *plainServer) DoGet(_ *libflight.Ticket, st libflight.FlightService_DoGetServer) error {
	w := libflight.NewRecordWriter(st, ipc.WithSchema(s.rec.Schema()))
	if err := w.Write(s.rec); err != nil {
		return err
	}
	return w.Close()
}

func benchLibrary(b *testing.B, rec arrow.RecordBatch, size int) {
	srv := libflight.NewServerWithMiddleware(nil)
	if err := srv.Init("127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	srv.RegisterFlightService(&plainServer{rec: rec})
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve() }()
	defer func() { srv.Shutdown(); <-done }()
	c, err := libflight.NewClientWithMiddleware(srv.Addr().String(), nil, nil,
		grpc.WithTransportCredentials(plain()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		st, err := c.DoGet(ctx, &libflight.Ticket{})
		if err != nil {
			b.Fatal(err)
		}
		r, err := libflight.NewRecordReader(st)
		if err != nil {
			b.Fatal(err)
		}
		if !r.Next() {
			b.Fatal(r.Err())
		}
		touch(r.RecordBatch())
		r.Release()
		cancel()
	}
}
