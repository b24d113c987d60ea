package flight_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
)

// read reads a range and fails on a gap, a repeated batch or a wrong one.
func (s *shelf) read(tb testing.TB, c *flight.Client, r flight.Request) (next uint64, err error) {
	tb.Helper()
	next = r.From
	for b, err := range c.Range(tb.Context(), r) {
		if err != nil {
			return next, err
		}
		if b.Meta.Sequence != next || b.Dataset != dataset {
			tb.Fatalf("batch %d where %d belongs", b.Meta.Sequence, next)
		}
		s.same(tb, next, b.Record)
		next++
	}
	return next, nil
}

func TestRange(t *testing.T) {
	s := newShelf(t, 40, 200)
	srv := serve(t, flight.ServerConfig{Source: s})
	size := int64(len(s.frames[0]))
	for _, c := range []struct {
		name     string
		cfg      flight.Config
		from, to uint64
	}{
		{"all", flight.Config{}, 0, 40},
		{"one stream", flight.Config{Streams: 1}, 0, 40},
		{"many streams", flight.Config{Streams: 16}, 0, 40},
		{"more streams than batches", flight.Config{Streams: 16}, 38, 40},
		{"part", flight.Config{Streams: 3}, 7, 23},
		{"one batch", flight.Config{}, 39, 40},
		{"none", flight.Config{}, 5, 5},
		{"room for less than one batch", flight.Config{MaxBytesInFlight: 1}, 0, 40},
		{"room for three", flight.Config{MaxBytesInFlight: 3 * size}, 0, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := dial(t, c.cfg)
			next, err := s.read(t, client, flight.Request{URI: srv.URI().String(), Dataset: dataset, From: c.from, To: c.to, Fingerprint: arrowio.Fingerprint(schema)})
			if err != nil || next != c.to {
				t.Errorf("up to %d, %v", next, err)
			}
			if st := client.Stats(); st.Batches != int64(c.to-c.from) || st.Resumed != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
	eventually(t, "all frames are given back", func() bool { return s.lent.Load() == 0 && srv.Stats().PendingBytes == 0 })
}

func TestRangeEnds(t *testing.T) {
	s := newShelf(t, 10, 50)
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{Patience: time.Second})
	uri := srv.URI().String()
	t.Run("where the dataset does", func(t *testing.T) {
		next, err := s.read(t, c, flight.Request{URI: uri, Dataset: dataset, From: 8, To: 12})
		if next != 10 || !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("up to %d, %v", next, err)
		}
	})
	t.Run("when the loop breaks", func(t *testing.T) {
		for range c.Range(t.Context(), flight.Request{URI: uri, Dataset: dataset, To: 10}) {
			break
		}
	})
	t.Run("when the loop panics", func(t *testing.T) {
		func() {
			defer func() { _ = recover() }()
			for range c.Range(t.Context(), flight.Request{URI: uri, Dataset: dataset, To: 10}) {
				panic("made so")
			}
		}()
	})
	t.Run("with the context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for _, err := range c.Range(ctx, flight.Request{URI: uri, Dataset: dataset, To: 10}) {
			last = err
			cancel()
		}
		if last != nil && !errors.Is(last, context.Canceled) {
			t.Error(last)
		}
	})
	t.Run("before it begins", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n := 0
		for _, err := range c.Range(ctx, flight.Request{URI: uri, Dataset: dataset, To: 10}) {
			if n++; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if n != 1 {
			t.Errorf("%d turns", n)
		}
	})
	for name, r := range map[string]flight.Request{
		"backwards": {URI: uri, Dataset: dataset, From: 2, To: 1}, "no dataset": {URI: uri, To: 1},
		"fingerprint is none": {URI: uri, Dataset: dataset, To: 1, Fingerprint: "x"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.read(t, c, r); !errors.Is(err, flight.ErrTicket) {
				t.Error(err)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		c := dial(t, flight.Config{Patience: 100 * time.Millisecond})
		if _, err := s.read(t, c, flight.Request{URI: closedPort(t), Dataset: dataset, To: 1}); !errors.Is(err, flight.ErrDown) {
			t.Error(err)
		}
		if c.Stats().Resumed == 0 {
			t.Error("it was not tried again")
		}
	})
	eventually(t, "all frames are given back", func() bool { return s.lent.Load() == 0 && srv.Stats().PendingBytes == 0 })
}

func TestRangeResumesWhereAStreamBroke(t *testing.T) {
	s := newShelf(t, 60, 50)
	var broke atomic.Int64
	rng := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	s.setFail(func(_ context.Context, _ uint64) error {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(4) == 0 {
			broke.Add(1)
			return status.Error(codes.Unavailable, "made so")
		}
		return nil
	})
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{})
	next, err := s.read(t, c, flight.Request{URI: srv.URI().String(), Dataset: dataset, To: 60})
	if err != nil || next != 60 {
		t.Errorf("up to %d, %v", next, err)
	}
	if st := c.Stats(); st.Batches != 60 || st.Resumed != broke.Load() || st.Resumed == 0 {
		t.Errorf("%+v, broke %d times", st, broke.Load())
	}
}

func TestRangeGoesOnWhenItsServerIsKilledAndBack(t *testing.T) {
	s := newShelf(t, 30, 50)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	srv := serve(t, flight.ServerConfig{Source: s, Listener: l})
	// Batch 10 does not leave the first server.
	stuck := make(chan struct{})
	var once sync.Once
	s.setFail(func(ctx context.Context, seq uint64) error {
		if seq < 10 {
			return nil
		}
		once.Do(func() { close(stuck) })
		<-ctx.Done()
		return ctx.Err()
	})
	go func() {
		<-stuck
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // no grace: streams are cut
		_ = srv.Close(ctx)
		s.setFail(nil)
		again, err := net.Listen("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		srv2, err := flight.Serve(t.Context(), flight.ServerConfig{Source: s, Listener: again, Token: secret})
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { stop(t, srv2, 5*time.Second) })
	}()
	c := dial(t, flight.Config{Streams: 3})
	next, err := s.read(t, c, flight.Request{URI: arrowio.FlightURI{Addr: addr}.String(), Dataset: dataset, To: 30})
	if err != nil || next != 30 {
		t.Errorf("up to %d, %v", next, err)
	}
	if st := c.Stats(); st.Resumed == 0 || st.Batches != 30 {
		t.Errorf("%+v", st)
	}
	eventually(t, "all frames are given back", func() bool { return s.lent.Load() == 0 })
}

func TestRangeHoldsNoMoreThanItsRoom(t *testing.T) {
	s := newShelf(t, 64, 500)
	srv := serve(t, flight.ServerConfig{Source: s})
	most := 0
	for _, f := range s.frames {
		most = max(most, len(f))
	}
	c := dial(t, flight.Config{Streams: 4, MaxBytesInFlight: int64(8 * most)})
	read := int64(0)
	for _, err := range c.Range(t.Context(), flight.Request{URI: srv.URI().String(), Dataset: dataset, To: 64}) {
		if err != nil {
			t.Fatal(err)
		}
		if read == 3 {
			// The reader stands still. What is fetched meanwhile ends by itself, and with
			// nothing left at the server.
			last, still := int64(-1), 0
			eventually(t, "prefetch comes to rest", func() bool {
				now := c.Stats().Batches
				if still++; now != last || srv.Stats().PendingBytes > 0 {
					last, still = now, 0
				}
				return still > 10
			})
		}
		if ahead := c.Stats().Batches - read; ahead > 8 {
			t.Fatalf("%d batches are held, there is room for 8", ahead)
		}
		read++
	}
	if read != 64 {
		t.Errorf("%d batches", read)
	}
}

func TestServerBoundsWhatAClientHasInMemory(t *testing.T) {
	s := newShelf(t, 24, 2000)
	most := 0
	for _, f := range s.frames {
		most = max(most, len(f))
	}
	srv := serve(t, flight.ServerConfig{Source: s, MaxMessageBytes: int64(most), MaxClientBytes: int64(most), MaxBytes: int64(2 * most)})
	stopWatch, watched := make(chan struct{}), make(chan int64, 1)
	go func() {
		peak := int64(0)
		for {
			peak = max(peak, srv.Stats().PendingBytes)
			select {
			case <-stopWatch:
				watched <- peak
				return
			default:
			}
		}
	}()
	c := dial(t, flight.Config{Streams: 8})
	next, err := s.read(t, c, flight.Request{URI: srv.URI().String(), Dataset: dataset, To: 24})
	close(stopWatch)
	if peak := <-watched; err != nil || next != 24 || peak > int64(most) {
		t.Errorf("up to %d, %v; %d bytes were pending, %d allowed", next, err, peak, most)
	}
}

func TestSchemaMessagesMayDiffer(t *testing.T) {
	s := newShelf(t, 4, 20)
	// The same schema in other bytes: eight more of padding after its message.
	l, err := arrowio.Inspect(s.frames[2])
	if err != nil {
		t.Fatal(err)
	}
	head := 8 + len(l.Messages[0].Meta)
	padded := append([]byte(nil), s.frames[2][:head]...)
	padded = append(padded, make([]byte, 64)...)
	n := uint32(len(l.Messages[0].Meta) + 64)
	padded[4], padded[5], padded[6], padded[7] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	padded = append(padded, s.frames[2][head:len(s.frames[2])-8]...) // and no mark at the end
	s.frames[2] = aligned(padded)
	srv := serve(t, flight.ServerConfig{Source: s})
	c := dial(t, flight.Config{Streams: 1})
	if next, err := s.read(t, c, flight.Request{URI: srv.URI().String(), Dataset: dataset, To: 4}); err != nil || next != 4 {
		t.Errorf("up to %d, %v", next, err)
	}
	rec, err := c.Resolve(t.Context(), s.ref(t, 2, srv.URI())) // against the catalog's checksum of these bytes
	if err != nil {
		t.Fatal(err)
	}
	rec.Release()
}
