package flight_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"go.uber.org/goleak"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
)

const (
	dataset = "flights/schedule"
	secret  = flight.Token("open-sesame-open-sesame")
)

var schema = arrow.NewSchema([]arrow.Field{
	{Name: "id", Type: arrow.PrimitiveTypes.Int64},
	{Name: "place", Type: arrow.BinaryTypes.String, Nullable: true},
	{Name: "carrier", Type: &arrow.DictionaryType{IndexType: arrow.PrimitiveTypes.Int8, ValueType: arrow.BinaryTypes.String}},
}, nil)

// batch makes rows rows that depend on seq alone.
func batch(seq uint64, rows int) arrow.RecordBatch {
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	for i := range rows {
		b.Field(0).(*array.Int64Builder).Append(int64(seq)*1_000_000 + int64(i))
		if i%3 == 0 {
			b.Field(1).AppendNull()
		} else {
			b.Field(1).(*array.StringBuilder).Append(fmt.Sprint("gate ", i%17))
		}
		if err := b.Field(2).(*array.BinaryDictionaryBuilder).AppendString(fmt.Sprint("carrier ", (int(seq)+i)%5)); err != nil {
			panic(err)
		}
	}
	return b.NewRecordBatch()
}

func frame(tb testing.TB, rec arrow.RecordBatch) []byte {
	tb.Helper()
	defer rec.Release()
	b, err := arrowio.Encode(rec, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// shelf is a source: framed batches by sequence, all of one dataset. It counts
// the frames that are lent.
type shelf struct {
	mu     sync.Mutex
	frames [][]byte
	digest string                                      // of all frames, if known
	fail   func(ctx context.Context, seq uint64) error // called with each Frame
	lent   atomic.Int64
	asked  atomic.Int64
}

func newShelf(tb testing.TB, n, rows int) *shelf {
	s := &shelf{}
	for seq := range uint64(n) {
		s.frames = append(s.frames, frame(tb, batch(seq, rows)))
	}
	return s
}

func (s *shelf) Frame(ctx context.Context, ref arrowio.Ref) (flight.Frame, error) {
	s.asked.Add(1)
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(ctx, ref.Sequence); err != nil {
			return flight.Frame{}, err
		}
	}
	if ref.Dataset != dataset || ref.Sequence >= uint64(len(s.frames)) {
		return flight.Frame{}, arrowio.ErrGone
	}
	s.lent.Add(1)
	return flight.Frame{Bytes: s.frames[ref.Sequence], SHA256: s.digest, Release: func() { s.lent.Add(-1) }}, nil
}

func (s *shelf) setFail(f func(ctx context.Context, seq uint64) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

func (s *shelf) Resolve(ctx context.Context, ref arrowio.Ref) (arrow.RecordBatch, error) {
	f, err := s.Frame(ctx, ref)
	if err != nil {
		return nil, err
	}
	return arrowio.Decode(f.Bytes, f.Release)
}

func (s *shelf) Describe(_ context.Context, name string) (flight.Info, error) {
	if name != dataset {
		return flight.Info{}, arrowio.ErrGone
	}
	info := flight.Info{Next: uint64(len(s.frames)), Sealed: true}
	for _, f := range s.frames {
		l, err := arrowio.Inspect(f)
		if err != nil {
			return info, err
		}
		info.Rows += l.Rows
	}
	if len(s.frames) > 0 {
		info.Fingerprint = arrowio.Fingerprint(schema)
	}
	return info, nil
}

// ref is what a catalog would say of a batch of s, hot at host.
func (s *shelf) ref(tb testing.TB, seq uint64, host arrowio.FlightURI) arrowio.Ref {
	tb.Helper()
	l, err := arrowio.Inspect(s.frames[seq])
	if err != nil {
		tb.Fatal(err)
	}
	return arrowio.Ref{
		Dataset: dataset, Sequence: seq, Rows: l.Rows, BodyBytes: l.BodyBytes, Fingerprint: arrowio.Fingerprint(schema),
		Locations: []arrowio.Location{
			{Tier: arrowio.Hot, URI: host.String(), Bytes: int64(len(s.frames[seq])), Codec: "arrow-ipc"},
			{Tier: arrowio.Warm, URI: "file:///there", Bytes: int64(len(s.frames[seq])), SHA256: digest(s.frames[seq]), Codec: "arrow-ipc"},
		},
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func serve(tb testing.TB, cfg flight.ServerConfig) *flight.Server {
	tb.Helper()
	if cfg.Listener == nil && cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Token == "" && !cfg.Insecure {
		cfg.Token = secret
	}
	s, err := flight.Serve(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { stop(tb, s, 5*time.Second) })
	return s
}

func stop(tb testing.TB, s *flight.Server, grace time.Duration) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		tb.Error(err)
	}
}

func dial(tb testing.TB, cfg flight.Config) *flight.Client {
	tb.Helper()
	if cfg.Token == "" {
		cfg.Token = secret
	}
	c, err := flight.Dial(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// same fails unless got is the frame that s has of seq.
func (s *shelf) same(tb testing.TB, seq uint64, got arrow.RecordBatch) {
	tb.Helper()
	want, err := arrowio.Decode(s.frames[seq], nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer want.Release()
	if !arrowSame(want, got) || arrowio.Fingerprint(got.Schema()) != arrowio.Fingerprint(want.Schema()) {
		tb.Errorf("batch %d differs", seq)
	}
}

// eventually polls until ok or 20 s have passed.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("not in 20 s: %s", what)
		}
	}
}

// authority makes certificates for 127.0.0.1.
type authority struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	a := &authority{tb: tb, key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		tb.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue() tls.Certificate {
	a.tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.tb.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "host"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// large frames a batch of one column of so many bytes.
func large(tb testing.TB, bytes int) []byte {
	tb.Helper()
	b := array.NewInt64Builder(memory.DefaultAllocator)
	defer b.Release()
	values := make([]int64, bytes/8)
	for i := range values {
		values[i] = int64(i) * 0x9E3779B9
	}
	b.AppendValues(values, nil)
	col := b.NewInt64Array()
	defer col.Release()
	return frame(tb, array.NewRecordBatch(arrow.NewSchema([]arrow.Field{{Name: "n", Type: arrow.PrimitiveTypes.Int64}}, nil),
		[]arrow.Array{col}, int64(len(values))))
}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	goleak.VerifyTestMain(m)
}

// aligned returns the bytes in memory that starts on a 64-byte boundary.
func aligned(b []byte) []byte {
	out := memory.DefaultAllocator.Allocate(len(b))
	copy(out, b)
	return out
}

func plain() credentials.TransportCredentials { return insecure.NewCredentials() }

func arrowSame(a, b arrow.RecordBatch) bool { return array.RecordEqual(a, b) }

func ipcReader(tb testing.TB, r io.Reader) *ipc.Reader {
	tb.Helper()
	in, err := ipc.NewReader(r)
	if err != nil {
		tb.Fatal(err)
	}
	return in
}
