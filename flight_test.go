package stokehold

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/nats-io/nats.go"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/internal/natstest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

const flightToken = "a-token-of-some-length"

// deployment is what all hosts share: the bus, with the catalog, and the object
// store.
type deployment struct {
	t    *testing.T
	ctx  context.Context
	conn *nats.Conn
	bus  *events.Bus
	cold *objectdir.Store
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	d := &deployment{t: t, ctx: ctx, conn: natstest.Start(t).Connect()}
	var err error
	if d.bus, err = events.Open(ctx, events.Config{Conn: d.conn, Judge: events.AllowAll()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.bus.Close(context.WithoutCancel(ctx)) })
	if d.cold, err = objectdir.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return d
}

// member is a host: an App without Temporal and policies.
type member struct {
	*App
	warm string
}

// host joins one. ask, if given, stands between its own memory and Flight, as
// other processes of one host do.
func (d *deployment) host(f Flight, arenaBytes int64, ask arrowio.Resolver) *member {
	d.t.Helper()
	m := &member{App: &App{cfg: Config{Flight: f, Log: slog.New(slog.DiscardHandler)}, Hot: &shm.Host{}}, warm: d.t.TempDir()}
	if err := errors.Join(f.validate()...); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if err := m.Close(context.WithoutCancel(d.ctx)); err != nil {
			d.t.Error(err)
		}
	})
	m.onClose(func(context.Context) error { return m.Hot.Close() })
	var arena *shm.Arena
	var err error
	if arenaBytes > 0 {
		if arena, err = shm.New(shm.Config{Bytes: arenaBytes}); err != nil {
			d.t.Fatal(err)
		}
	}
	peers, err := m.openFlight(d.ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	chain := arrowio.Resolvers{}
	if ask != nil {
		chain = append(chain, ask)
	}
	if peers.resolver != nil {
		chain = append(chain, peers.resolver)
	}
	m.Store, err = tiers.Open(d.ctx, tiers.Config{
		Conn: d.conn, Bus: d.bus, Host: m.Hot, Arena: arena, Warm: m.warm, Cold: d.cold,
		Peers: chain, Advertise: peers.advertise,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	m.onClose(m.Store.Close)
	if err := m.serveFlight(peers); err != nil {
		d.t.Fatal(err)
	}
	return m
}

var numbers = arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil)

// write writes batches 0 to n-1.
func (d *deployment) write(m *member, dataset string, n uint64) {
	d.t.Helper()
	w, err := m.Store.Writer(d.ctx, dataset, numbers, tiers.Fence{Run: "r", Stage: "s", Attempt: 1})
	if err != nil {
		d.t.Fatal(err)
	}
	for seq := range n {
		b := array.NewRecordBuilder(memory.DefaultAllocator, numbers)
		b.Field(0).(*array.Int64Builder).AppendValues([]int64{int64(seq), 1, 2, 3}, nil)
		rec := b.NewRecordBatch()
		if _, err := w.WriteAt(d.ctx, seq, rec); err != nil {
			d.t.Fatal(err)
		}
		rec.Release()
		b.Release()
	}
}

func (d *deployment) open(m *member, dataset string, seq uint64) *tiers.Batch {
	d.t.Helper()
	ref, err := m.Store.Ref(d.ctx, dataset, seq)
	if err != nil {
		d.t.Fatal(err)
	}
	b, err := m.Store.OpenBatch(d.ctx, ref, false)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(b.Release)
	if b.Record.NumRows() != 4 || b.Record.Column(0).(*array.Int64).Value(0) != int64(seq) {
		d.t.Errorf("batch %d is another", seq)
	}
	return b
}

// local stands for other processes of this host.
type local struct{ asked, has int64 }

func (l *local) Resolve(context.Context, arrowio.Ref) (arrow.RecordBatch, error) {
	l.asked++
	if l.has == 0 {
		return nil, arrowio.ErrGone
	}
	l.has--
	b := array.NewRecordBuilder(memory.DefaultAllocator, numbers)
	defer b.Release()
	b.Field(0).(*array.Int64Builder).AppendValues([]int64{0, 1, 2, 3}, nil)
	return b.NewRecordBatch(), nil
}

func TestBatchesAreOpenedAtTheNearestPlace(t *testing.T) {
	d := newDeployment(t)
	gives := Flight{Addr: "127.0.0.1:0", Token: flightToken}
	a := d.host(gives, 1<<20, nil)
	d.write(a, "near", 3)
	same := &local{}
	b := d.host(gives, 1<<20, same)

	if got := d.open(a, "near", 0); got.Tier != arrowio.Hot || got.Peer || a.Flight.Stats().Streams != 0 {
		t.Errorf("own memory: %+v", got)
	}
	same.has = 1
	if got := d.open(b, "near", 0); !got.Peer || same.asked != 1 || a.Flight.Stats().Batches != 0 {
		t.Errorf("another process of this host: %+v, asked %d times", got, same.asked)
	}
	if got := d.open(b, "near", 0); !got.Peer || same.asked != 2 || a.Flight.Stats().Batches != 1 {
		t.Errorf("the other host: %+v, %+v", got, a.Flight.Stats())
	}
	ref, err := b.Store.Ref(d.ctx, "near", 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Store.OpenBatch(d.ctx, ref, true); err != nil || got.Lease == nil || a.Flight.Stats().Batches != 2 {
		t.Errorf("into the arena: %+v, %v", got, err)
	} else {
		got.Release()
	}
	if got := d.open(b, "near", 1); got.Peer || a.Flight.Stats().Batches != 2 {
		t.Errorf("it is in the own arena now: %+v", got)
	}
	if st := b.Store.Stats(); st.Peer != 3 || st.PeerErrors != 0 || st.Hot != 1 || st.Warm+st.Cold != 0 {
		t.Errorf("%+v", st)
	}
	info, err := b.Store.Head(d.ctx, "near")
	if err != nil || info.Next != 3 {
		t.Error(info, err)
	}
}

func TestFlightServesFromDiskWhatIsNotHot(t *testing.T) {
	d := newDeployment(t)
	a := d.host(Flight{Addr: "127.0.0.1:0", Token: flightToken}, 0, nil)
	d.write(a, "disk", 1)
	b := d.host(Flight{Token: flightToken}, 0, nil)
	if got := d.open(b, "disk", 0); !got.Peer || b.Flight != nil {
		t.Errorf("%+v", got)
	}
	// A host does not ask itself.
	if got := d.open(a, "disk", 0); got.Peer || got.Tier != arrowio.Warm || a.Flight.Stats().Streams != 1 {
		t.Errorf("%+v, %+v", got, a.Flight.Stats())
	}
}

func TestOtherTiersServeWhenFlightCannot(t *testing.T) {
	gives := Flight{Addr: "127.0.0.1:0", Token: flightToken}
	for _, c := range []struct {
		name   string
		reader Flight
		breaks func(a *member)
		errors int64
	}{
		{"host is down", Flight{Token: flightToken}, func(a *member) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = a.Flight.Close(ctx)
		}, 1},
		{"host's copy is damaged", Flight{Token: flightToken}, func(a *member) {
			err := filepath.WalkDir(a.warm, func(path string, e os.DirEntry, err error) error {
				if err != nil || !strings.HasSuffix(path, ".arrow") {
					return err
				}
				raw, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				raw[len(raw)/2] ^= 1
				return os.WriteFile(path, raw, 0o600)
			})
			if err != nil {
				t.Error(err)
			}
		}, 1},
		{"host's copy is gone", Flight{Token: flightToken}, func(a *member) { _ = os.RemoveAll(a.warm) }, 0},
		{"host refuses the token", Flight{Token: "quite-another-token"}, func(*member) {}, 1},
		{"this host takes no part", Flight{}, func(*member) {}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDeployment(t)
			a := d.host(gives, 0, nil)
			d.write(a, "data", 1)
			if _, err := a.Store.Move(d.ctx, tiers.Migration{Dataset: "data"}, nil); err != nil {
				t.Fatal(err)
			}
			c.breaks(a)
			b := d.host(c.reader, 0, nil)
			got := d.open(b, "data", 0)
			if st := b.Store.Stats(); got.Peer || got.Tier != arrowio.Cold || st.Peer != 0 || st.PeerErrors != c.errors {
				t.Errorf("%s, %+v", got.Tier, st)
			}
		})
	}
}

func TestFlightWithCertificates(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, kind string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, private := file("cert.pem", "CERTIFICATE", der), file("key.pem", "EC PRIVATE KEY", raw)
	d := newDeployment(t)
	a := d.host(Flight{Addr: "127.0.0.1:0", Token: flightToken, CertFile: cert, KeyFile: private}, 0, nil)
	d.write(a, "secret", 1)
	if !strings.HasPrefix(a.Flight.URI().String(), "grpc+tls://") {
		t.Error(a.Flight.URI())
	}
	if got := d.open(d.host(Flight{Token: flightToken, CAFile: cert}, 0, nil), "secret", 0); !got.Peer {
		t.Errorf("%+v", got)
	}
	stranger := d.host(Flight{Token: flightToken}, 0, nil)
	ref, err := stranger.Store.Ref(d.ctx, "secret", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Store.OpenBatch(d.ctx, ref, false); !errors.Is(err, flight.ErrDown) {
		t.Errorf("a host that nobody vouches for: %v", err)
	}
	for name, f := range map[string]Flight{
		"no such certificate": {Addr: "127.0.0.1:0", Token: flightToken, CertFile: "/nowhere", KeyFile: private},
		"no authority in it":  {Token: flightToken, CAFile: private},
		"no such address":     {Addr: "192.0.2.1:1", Token: flightToken},
	} {
		if _, err := (&App{cfg: Config{Flight: f}}).openFlight(t.Context()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	app := &App{cfg: Config{Flight: Flight{Addr: "127.0.0.1:0"}, Log: slog.New(slog.DiscardHandler)}, Store: a.Store}
	p, err := app.openFlight(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := app.serveFlight(p); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("served without a token: %v", err)
	}
	_ = app.Close(t.Context())
}
