package s3_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// authority issues certificates for loopback.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.write("ca.crt", "CERTIFICATE", der)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name, kind string, der []byte) {
	a.t.Helper()
	if err := os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// issue writes a certificate for loopback and its key.
func (a *authority) issue(certName, keyName string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "loopback"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	a.write(certName, "CERTIFICATE", der)
	a.write(keyName, "PRIVATE KEY", keyDER)
	cert, err := tls.LoadX509KeyPair(a.path(certName), a.path(keyName))
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

const kmsKey = "stokehold-test"

func kms() miniotest.Option {
	return miniotest.Env("MINIO_KMS_SECRET_KEY=" + kmsKey + ":MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
}

// roundTrip puts, gets, reads a range of and deletes an object in one request, and
// one in parts.
func roundTrip(t *testing.T, s *s3.Store) {
	t.Helper()
	for _, size := range []int{1000, 11 << 20} {
		want := bytes.Repeat([]byte("stokehold."), size/10)
		key := fmt.Sprintf("round/%d", size)
		if err := s.Put(t.Context(), key, want); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(t.Context(), key); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		dst := make([]byte, 100)
		if _, err := s.ReadRange(t.Context(), key, 777, dst); err != nil || !bytes.Equal(dst, want[777:877]) {
			t.Errorf("range: %q, %v", dst, err)
		}
		if err := s.Delete(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}

// raw is a client of the same server that knows nothing of the driver.
func raw(t *testing.T, m *minioserver.Server, roots *x509.CertPool) *minio.Client {
	t.Helper()
	u, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(m.AccessKey, m.SecretKey, ""), Secure: u.Scheme == "https",
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestTLSAndEncryption(t *testing.T) {
	ca, other := newAuthority(t, "ours"), newAuthority(t, "another")
	ca.issue("public.crt", "private.key")
	m := miniotest.Start(t, miniotest.Certs(ca.dir), kms())
	cfg := onMinIO(m, "secret")

	t.Run("authority not known", func(t *testing.T) {
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrTLS) || !strings.Contains(err.Error(), "CAFile") {
			t.Errorf("got %v, want ErrTLS", err)
		}
		wrong := cfg
		wrong.CAFile = other.path("ca.crt")
		if _, err := s3.Open(t.Context(), wrong); !errors.Is(err, s3.ErrTLS) {
			t.Errorf("got %v, want ErrTLS", err)
		}
	})
	t.Run("http to an https endpoint", func(t *testing.T) {
		plain := cfg
		plain.Endpoint = strings.Replace(m.URL, "https://", "http://", 1)
		if _, err := s3.Open(t.Context(), plain); err == nil {
			t.Error("opened")
		}
	})
	cfg.CAFile = ca.path("ca.crt")
	t.Run("authority known", func(t *testing.T) { roundTrip(t, open(t, cfg)) })

	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	client := raw(t, m, roots)
	for name, header := range map[s3.Encryption]string{s3.EncryptionS3: "AES256", s3.EncryptionKMS: "aws:kms"} {
		t.Run(string(name), func(t *testing.T) {
			cfg := cfg
			cfg.Encryption = name
			if name == s3.EncryptionKMS {
				cfg.KMSKeyID = kmsKey
			}
			s := open(t, cfg)
			roundTrip(t, s)
			for _, size := range []int{10, 6 << 20} {
				if err := s.Put(t.Context(), "encrypted", make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				info, err := client.StatObject(t.Context(), cfg.Bucket, "encrypted", minio.StatObjectOptions{})
				if got := info.Metadata.Get("X-Amz-Server-Side-Encryption"); err != nil || got != header {
					t.Errorf("%d bytes are encrypted by %q, %v; want %s", size, got, err, header)
				}
			}
		})
	}
	t.Run("SSE-C", func(t *testing.T) {
		cfg := cfg
		cfg.Encryption, cfg.CustomerKey = s3.EncryptionCustomer, bytes.Repeat([]byte("k"), 32)
		s := open(t, cfg)
		if g := s.Guarantees(); len(g.Notes) > 0 || !g.ConditionalPut || !g.ReadAfterWrite {
			t.Errorf("%+v", g)
		}
		roundTrip(t, s)
		if err := s.Put(t.Context(), "mine", []byte("x")); err != nil {
			t.Fatal(err)
		}
		cfg.CustomerKey = bytes.Repeat([]byte("j"), 32)
		cfg.NoProbe = true
		if _, err := open(t, cfg).Get(t.Context(), "mine"); !errors.Is(err, s3.ErrAccess) {
			t.Errorf("another key: %v, want ErrAccess", err)
		}
		cfg.Encryption, cfg.CustomerKey = s3.EncryptionNone, nil
		if _, err := open(t, cfg).Get(t.Context(), "mine"); err == nil {
			t.Error("read without the key")
		}
	})
	t.Run("SSE-KMS with a key that is not there", func(t *testing.T) {
		cfg := cfg
		cfg.Encryption, cfg.KMSKeyID = s3.EncryptionKMS, "absent"
		if _, err := s3.Open(t.Context(), cfg); err == nil {
			t.Error("opened")
		}
	})
}

func TestClientCertificate(t *testing.T) {
	m := miniotest.Start(t)
	ca, other := newAuthority(t, "ours"), newAuthority(t, "another")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	u, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	// MinIO does not insist on client certificates; what stands before it may.
	front := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host }})
	front.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue("server.crt", "server.key")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	front.Config.ErrorLog = nil
	front.StartTLS()
	defer front.Close()
	cfg := onMinIO(m, "mutual")
	cfg.Endpoint, cfg.CAFile, cfg.Retries = front.URL, ca.path("ca.crt"), 1
	if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrTLS) {
		t.Errorf("without a certificate: %v, want ErrTLS", err)
	}
	other.issue("client.crt", "client.key")
	cfg.ClientCert, cfg.ClientKey = other.path("client.crt"), other.path("client.key")
	if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrTLS) {
		t.Errorf("with another authority's certificate: %v, want ErrTLS", err)
	}
	ca.issue("client.crt", "client.key")
	cfg.ClientCert, cfg.ClientKey = ca.path("client.crt"), ca.path("client.key")
	roundTrip(t, open(t, cfg))
}

func TestVersionedBucket(t *testing.T) {
	m := miniotest.Start(t)
	cfg := onMinIO(m, "versions")
	open(t, cfg)
	client := raw(t, m, nil)
	if err := client.EnableVersioning(t.Context(), cfg.Bucket); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	if !s.Guarantees().Versioned {
		t.Errorf("%+v", s.Guarantees())
	}
	versions := func() (n int) {
		for o := range client.ListObjects(t.Context(), cfg.Bucket, minio.ListObjectsOptions{WithVersions: true, Recursive: true}) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			n++
		}
		return n
	}
	if _, err := s.SweepPartial(t.Context(), 0); err != nil { // what the probe left
		t.Fatal(err)
	}
	if n := versions(); n != 0 {
		t.Errorf("%d versions of a bucket that is empty", n)
	}
	for _, body := range []string{"1", "2", "3"} {
		if err := s.Put(t.Context(), "kept", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(t.Context(), "gone", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Delete(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(t.Context(), "gone"); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if _, err := s.ReadRange(t.Context(), "gone", 0, make([]byte, 1)); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if err := s.PutIfAbsent(t.Context(), "gone", []byte("y")); err != nil {
		t.Errorf("put where there is a mark of deletion: %v", err)
	}
	if err := s.Delete(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	var listed []string
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, o.Key)
	}
	if fmt.Sprint(listed) != "[kept]" {
		t.Errorf("listed %v", listed)
	}
	before := versions()
	if n, err := s.SweepPartial(t.Context(), time.Hour); err != nil || n != 0 || versions() != before {
		t.Errorf("within the grace: swept %d, %v", n, err)
	}
	if n, err := s.SweepPartial(t.Context(), 0); err != nil || n != before-1 || versions() != 1 {
		t.Errorf("swept %d of %d versions, %v; %d are left, want 1", n, before, err, versions())
	}
	if got, err := s.Get(t.Context(), "kept"); err != nil || string(got) != "3" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestStorageClassAddressingAndProxy(t *testing.T) {
	const domain = "s3.stokehold.test"
	m := miniotest.Start(t, miniotest.Env("MINIO_DOMAIN="+domain))
	cfg := onMinIO(m, "styles")
	client := raw(t, m, nil)

	t.Run("path", func(t *testing.T) {
		cfg := cfg
		cfg.Addressing = s3.AddressingPath
		roundTrip(t, open(t, cfg))
	})
	t.Run("storage class", func(t *testing.T) {
		cfg := cfg
		cfg.StorageClass = "REDUCED_REDUNDANCY"
		s := open(t, cfg)
		for _, size := range []int{10, 6 << 20} {
			if err := s.Put(t.Context(), "class", make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			info, err := client.StatObject(t.Context(), cfg.Bucket, "class", minio.StatObjectOptions{})
			if got := info.Metadata.Get("X-Amz-Storage-Class"); err != nil || got != cfg.StorageClass {
				t.Errorf("%d bytes are in class %q, %v", size, got, err)
			}
		}
	})

	// The proxy finds what no name server knows.
	u, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	var hosts atomic.Value
	proxy := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		hosts.Store(r.In.Host)
		r.Out.URL.Scheme, r.Out.URL.Host = u.Scheme, u.Host
	}})
	defer proxy.Close()
	t.Run("virtual host through a proxy", func(t *testing.T) {
		cfg := cfg
		cfg.Endpoint, cfg.Addressing, cfg.Proxy = "http://"+domain, s3.AddressingVirtual, proxy.URL
		roundTrip(t, open(t, cfg))
		if got := hosts.Load(); got != cfg.Bucket+"."+domain {
			t.Errorf("the proxy was asked for %v", got)
		}
	})
	t.Run("no proxy", func(t *testing.T) {
		cfg := cfg
		cfg.Endpoint, cfg.Proxy, cfg.Retries = "http://"+domain, "none", 1
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}
