package flight_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	gen "github.com/apache/arrow-go/v18/arrow/flight/gen/flight"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
)

// liar is a Flight server of the library's own that sends what it is told to.
type liar struct {
	gen.UnimplementedFlightServiceServer
	send func(send func(*gen.FlightData)) error
}

func (l *liar) DoGet(_ *gen.Ticket, st gen.FlightService_DoGetServer) error {
	return l.send(func(d *gen.FlightData) { _ = st.Send(d) })
}

func lie(t *testing.T, send func(send func(*gen.FlightData)) error) arrowio.FlightURI {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	gen.RegisterFlightServiceServer(srv, &liar{send: send})
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Stop(); <-done })
	return arrowio.FlightURI{Addr: l.Addr().String()}
}

func TestLyingServer(t *testing.T) {
	s := newShelf(t, 2, 50)
	l, err := arrowio.Inspect(s.frames[0])
	if err != nil {
		t.Fatal(err)
	}
	meta := flight.Meta{Sequence: 0, SHA256: digest(s.frames[0]), Rows: l.Rows, BodyBytes: l.BodyBytes, FrameBytes: int64(len(s.frames[0]))}
	// honest is the stream as it should be.
	honest := func() []*gen.FlightData {
		out := []*gen.FlightData{{DataHeader: l.Messages[0].Meta}}
		for _, m := range l.Messages[1:] {
			out = append(out, &gen.FlightData{DataHeader: m.Meta, DataBody: append([]byte(nil), m.Body...), AppMetadata: meta.Encode()})
		}
		return out
	}
	last := len(honest()) - 1
	with := func(f func(*flight.Meta)) []byte {
		m := meta
		f(&m)
		return m.Encode()
	}
	everywhere := func(d []*gen.FlightData, app []byte) []*gen.FlightData {
		for _, m := range d[1:] {
			m.AppMetadata = app
		}
		return d
	}
	cases := []struct {
		name string
		lie  func(d []*gen.FlightData) []*gen.FlightData
		end  error
		want error
	}{
		{"honest", func(d []*gen.FlightData) []*gen.FlightData { return d }, nil, nil},
		{"metadata messages in between", func(d []*gen.FlightData) []*gen.FlightData {
			return append([]*gen.FlightData{d[0], {AppMetadata: []byte("hello")}}, d[1:]...)
		}, nil, nil},
		{"flipped bit", func(d []*gen.FlightData) []*gen.FlightData { d[last].DataBody[9] ^= 4; return d }, nil, arrowio.ErrCorrupt},
		{"flipped bit in a dictionary", func(d []*gen.FlightData) []*gen.FlightData { d[1].DataBody[0] ^= 4; return d }, nil, arrowio.ErrCorrupt},
		{"body cut", func(d []*gen.FlightData) []*gen.FlightData {
			d[last].DataBody = d[last].DataBody[:len(d[last].DataBody)-64]
			return d
		}, nil, flight.ErrDown},
		{"body too long", func(d []*gen.FlightData) []*gen.FlightData {
			d[last].DataBody = append(d[last].DataBody, make([]byte, 64)...)
			return d
		}, nil, arrowio.ErrCorrupt},
		{"nothing", func([]*gen.FlightData) []*gen.FlightData { return nil }, nil, flight.ErrDown},
		{"schema alone", func(d []*gen.FlightData) []*gen.FlightData { return d[:1] }, nil, flight.ErrDown},
		{"ends within the batch", func(d []*gen.FlightData) []*gen.FlightData { return d[:last] }, nil, flight.ErrDown},
		{"no schema", func(d []*gen.FlightData) []*gen.FlightData { return d[1:] }, nil, arrowio.ErrCorrupt},
		{"no metadata", func(d []*gen.FlightData) []*gen.FlightData { return everywhere(d, nil) }, nil, arrowio.ErrCorrupt},
		{"malformed metadata", func(d []*gen.FlightData) []*gen.FlightData { return everywhere(d, []byte("{")) }, nil, arrowio.ErrCorrupt},
		{"huge metadata", func(d []*gen.FlightData) []*gen.FlightData {
			return everywhere(d, make([]byte, 3<<20))
		}, nil, arrowio.ErrCorrupt},
		{"another batch", func(d []*gen.FlightData) []*gen.FlightData {
			return everywhere(d, with(func(m *flight.Meta) { m.Sequence = 1 }))
		}, nil, arrowio.ErrCorrupt},
		{"batch twice", func(d []*gen.FlightData) []*gen.FlightData { return append(d, d[1:]...) }, nil, arrowio.ErrCorrupt},
		{"messages of two batches", func(d []*gen.FlightData) []*gen.FlightData {
			d[last].AppMetadata = with(func(m *flight.Meta) { m.SHA256 = strings.Repeat("0", 64) })
			return d
		}, nil, arrowio.ErrCorrupt},
		{"frame said to be huge", func(d []*gen.FlightData) []*gen.FlightData {
			return everywhere(d, with(func(m *flight.Meta) { m.FrameBytes = 1 << 60 }))
		}, nil, flight.ErrTooLarge},
		{"frame said to be tiny", func(d []*gen.FlightData) []*gen.FlightData {
			return everywhere(d, with(func(m *flight.Meta) { m.FrameBytes, m.BodyBytes = 8, 8 }))
		}, nil, arrowio.ErrCorrupt},
		{"frame of its own making", func(d []*gen.FlightData) []*gen.FlightData {
			sum := digest([]byte("x"))
			return everywhere(d, with(func(m *flight.Meta) { m.SHA256 = sum }))
		}, nil, arrowio.ErrCorrupt},
		{"rows of its own making", func(d []*gen.FlightData) []*gen.FlightData {
			return everywhere(d, with(func(m *flight.Meta) { m.Rows++ }))
		}, nil, arrowio.ErrCorrupt},
		{"a body in the schema", func(d []*gen.FlightData) []*gen.FlightData { d[0].DataBody = []byte("x"); return d }, nil, arrowio.ErrCorrupt},
		{"a body without a header", func(d []*gen.FlightData) []*gen.FlightData { d[1].DataHeader = nil; return d }, nil, arrowio.ErrCorrupt},
		{"a bad end", func(d []*gen.FlightData) []*gen.FlightData { return d }, status.Error(codes.Internal, "made so"), flight.ErrDown},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			uri := lie(t, func(send func(*gen.FlightData)) error {
				for _, d := range c.lie(honest()) {
					send(d)
				}
				return c.end
			})
			client := dial(t, flight.Config{})
			rec, err := client.Resolve(t.Context(), s.ref(t, 0, uri))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err == nil {
				s.same(t, 0, rec)
				rec.Release()
			}
		})
	}
	t.Run("a whole batch that lies", func(t *testing.T) {
		// Well-formed bytes with their right checksum, but an offset outside: only
		// looking at every value finds it where there is no ref's checksum.
		bad := aligned(append([]byte(nil), s.frames[0]...))
		in, err := arrowio.Inspect(bad)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := arrowio.Decode(bad, nil, arrowio.Trusted())
		if err != nil {
			t.Fatal(err)
		}
		offsets := rec.Column(1).Data().Buffers()[1].Bytes()
		offsets[7] = 0x70
		rec.Release()
		uri := lie(t, func(send func(*gen.FlightData)) error {
			m := meta
			m.SHA256 = digest(bad)
			send(&gen.FlightData{DataHeader: in.Messages[0].Meta})
			for _, msg := range in.Messages[1:] {
				send(&gen.FlightData{DataHeader: msg.Meta, DataBody: msg.Body, AppMetadata: m.Encode()})
			}
			return nil
		})
		c := dial(t, flight.Config{})
		ref := s.ref(t, 0, uri)
		ref.Locations = ref.Locations[:1]
		if _, err := c.Resolve(t.Context(), ref); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Error(err)
		}
		if _, err := s.read(t, c, flight.Request{URI: uri.String(), Dataset: dataset, To: 1}); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Error(err)
		}
		if c.Stats().Corrupt != 2 {
			t.Errorf("%+v", c.Stats())
		}
	})
}

func TestMalformedTicket(t *testing.T) {
	s := newShelf(t, 1, 1)
	srv := serve(t, flight.ServerConfig{Source: s, Insecure: true})
	conn, err := grpc.NewClient(srv.URI().Addr, grpc.WithTransportCredentials(plain()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	c := gen.NewFlightServiceClient(conn)
	get := func(ticket string) error {
		st, err := c.DoGet(t.Context(), &gen.Ticket{Ticket: []byte(ticket)})
		for err == nil {
			_, err = st.Recv()
		}
		return err
	}
	for _, bad := range []string{"", "{}", "x", `{"dataset":"d","from":1,"to":1}`, strings.Repeat(" ", 5000)} {
		if err := get(bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%.20q: %v", bad, err)
		}
	}
	if err := get(strings.Repeat("x", 1<<20)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a ticket of 1 MiB: %v", err)
	}
	if _, err := c.GetFlightInfo(t.Context(), &gen.FlightDescriptor{Type: gen.FlightDescriptor_CMD, Cmd: []byte("x")}); status.Code(err) != codes.InvalidArgument {
		t.Error(err)
	}
	if _, err := c.GetSchema(t.Context(), &gen.FlightDescriptor{}); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	// Larger than what lies in windows and sockets between the two.
	s := &shelf{frames: [][]byte{large(t, 16<<20)}}
	s.frames = append(s.frames, s.frames[0], s.frames[0], s.frames[0])
	srv := serve(t, flight.ServerConfig{Source: s, StallTimeout: 100 * time.Millisecond, MaxClientBytes: 1 << 28})
	conn, err := grpc.NewClient(srv.URI().Addr, grpc.WithTransportCredentials(plain()), grpc.WithPerRPCCredentials(secret))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	st, err := gen.NewFlightServiceClient(conn).DoGet(t.Context(), &gen.Ticket{Ticket: flight.Ticket{Dataset: dataset, To: 4}.Encode()})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream is cut off and all is given back", func() bool {
		return srv.Stats().Stalled == 1 && srv.Stats().PendingBytes == 0 && s.lent.Load() == 0
	})
	for err == nil {
		_, err = st.Recv()
	}
	if c := status.Code(err); c != codes.Aborted && c != codes.ResourceExhausted { // 4 MiB are this client's own limit
		t.Error(err)
	}
}

func TestBrokenConnectionGivesAllBack(t *testing.T) {
	s := &shelf{frames: [][]byte{large(t, 32<<20)}}
	srv := serve(t, flight.ServerConfig{Source: s})
	conn, err := grpc.NewClient(srv.URI().Addr, grpc.WithTransportCredentials(plain()), grpc.WithPerRPCCredentials(secret))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = gen.NewFlightServiceClient(conn).DoGet(context.Background(), &gen.Ticket{Ticket: flight.Ticket{Dataset: dataset, To: 1}.Encode()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the batch is under way", func() bool { return srv.Stats().PendingBytes > 0 })
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "all is given back", func() bool { return srv.Stats().PendingBytes == 0 && s.lent.Load() == 0 })
}
