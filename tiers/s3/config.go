package s3

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

const (
	// MaxObjectBytes is the largest object, unless Config sets another.
	MaxObjectBytes = 1 << 30

	largestObject       = 5 << 40 // S3's own limit, 10,000 parts
	largestPart         = 5 << 30
	smallestPart        = 5 << 20
	maxParts            = 10000
	defaultPart         = 64 << 20
	defaultConcurrency  = 4
	maxConcurrency      = 64
	defaultRetries      = 4
	maxRetries          = 20
	defaultStallTimeout = 30 * time.Second
	maxCredentialBytes  = 16 << 10
)

// Addressing says where requests name the bucket.
type Addressing string

// The ways to name it.
const (
	AddressingAuto    Addressing = ""        // virtual hosts at AWS and Google, paths elsewhere
	AddressingPath    Addressing = "path"    // https://HOST/BUCKET/KEY
	AddressingVirtual Addressing = "virtual" // https://BUCKET.HOST/KEY
)

// Encryption is server-side encryption of what is put.
type Encryption string

// The kinds.
const (
	EncryptionNone     Encryption = ""        // what the bucket's default says
	EncryptionS3       Encryption = "SSE-S3"  // keys of the server's
	EncryptionKMS      Encryption = "SSE-KMS" // Config.KMSKeyID
	EncryptionCustomer Encryption = "SSE-C"   // Config.CustomerKey, sent with each request; TLS only
)

// Config configures a Store. Its String, GoString, LogValue and MarshalJSON leave
// the secrets out. It is checked as a whole: the error of Open names every fault.
type Config struct {
	Endpoint   string // http://HOST:PORT, https://HOST or HOST:PORT (https)
	Region     string // default "us-east-1"
	Bucket     string
	Addressing Addressing

	// AccessKey and SecretKey, with SessionToken if they are temporary. Without them
	// credentials are looked for, at each expiry again, in: AWS_ACCESS_KEY_ID and
	// AWS_SECRET_ACCESS_KEY; MINIO_ROOT_USER and MINIO_ROOT_PASSWORD; the shared file
	// (AWS_SHARED_CREDENTIALS_FILE, ~/.aws/credentials); a web identity
	// (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN); the container's or machine's role.
	AccessKey    string
	SecretKey    string
	SessionToken string
	Profile      string // of the shared file; default AWS_PROFILE, "default"
	// STSEndpoint exchanges a web identity for credentials. Default AWS's; MinIO is
	// its own: Endpoint.
	STSEndpoint string

	CAFile     string // PEM; trusted beside the system's authorities
	ClientCert string // PEM files of a client certificate and its key
	ClientKey  string
	// Proxy is a URL; "" is HTTP_PROXY, HTTPS_PROXY and NO_PROXY, "none" is none.
	Proxy string

	Encryption   Encryption
	KMSKeyID     string // "" is the server's default key
	CustomerKey  []byte // 32 bytes
	StorageClass string // of what is put; "" is the bucket's default

	CreateBucket bool // create Bucket if it is missing
	// Syncs declares that the endpoint keeps acknowledged objects through a power
	// cut. No probe can find that out. Leave it unset where you are not certain: then
	// no object is ever the only copy of a batch.
	Syncs bool
	// NoProbe opens the store without writing to it, for credentials that may only
	// read. Nothing is then taken for guaranteed.
	NoProbe bool

	MaxObjectBytes int64 // default MaxObjectBytes
	// PartBytes is how large a single request gets. Larger objects go in parts of
	// this size. Default 64 MiB, 5 MiB to 5 GiB.
	PartBytes   int64
	Concurrency int // parts of an object at once; default 4, at most 64
	// Retries bounds the attempts of a request that fails in a way that may pass,
	// each after a wait with jitter of at most a second. Default 4, at most 20.
	Retries int
	// StallTimeout bounds how long a MiB may take in either direction, and an answer.
	// Default 30 s.
	StallTimeout time.Duration
}

// String describes the configuration without its secrets.
func (c Config) String() string {
	return fmt.Sprintf("S3 %s bucket %s region %s", bare(c.Endpoint), c.Bucket, c.Region)
}

// bare is an endpoint without a user and password, which it should not have.
func bare(endpoint string) string {
	if i := strings.LastIndex(endpoint, "@"); i >= 0 {
		return "…" + endpoint[i:]
	}
	return endpoint
}

// GoString is String: %#v must not print secrets either.
func (c Config) GoString() string { return c.String() }

// LogValue implements slog.LogValuer without the secrets.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON is String too.
func (c Config) MarshalJSON() ([]byte, error) { return json.Marshal(c.String()) }

// settings is a Config that has been checked.
type settings struct {
	Config
	host      string
	secure    bool
	lookup    minio.BucketLookupType
	sse       encrypt.ServerSide // of requests that write
	customer  encrypt.ServerSide // of requests that read: SSE-C or nil
	tls       *tls.Config
	transport *http.Transport
}

// check fills in defaults, reads the files that are named and makes the transport.
func (c Config) check() (settings, error) {
	s := settings{Config: c}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	s.checkPlace(fault)
	s.checkCredentials(fault)
	s.checkTLS(fault)
	s.checkEncryption(fault)
	s.checkLimits(fault)
	if err := s.makeTransport(); err != nil {
		fault("%w", err)
	}
	if len(faults) > 0 {
		return s, fmt.Errorf("%w: %w", ErrConfig, errors.Join(faults...))
	}
	return s, nil
}

type faultFunc func(format string, args ...any)

func (s *settings) checkPlace(fault faultFunc) {
	raw := s.Endpoint
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	switch {
	case s.Endpoint == "":
		fault("endpoint is missing (S3_ENDPOINT)")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "":
		fault("endpoint is not http://HOST:PORT or https://HOST")
	default:
		s.host, s.secure = u.Host, u.Scheme == "https"
	}
	if err := s3utils.CheckValidBucketName(s.Bucket); err != nil {
		fault("bucket %.80q is not a bucket's name: %w", s.Bucket, err)
	}
	if s.Region == "" {
		s.Region = "us-east-1"
	}
	switch s.Addressing {
	case AddressingAuto:
		s.lookup = minio.BucketLookupAuto
	case AddressingPath:
		s.lookup = minio.BucketLookupPath
	case AddressingVirtual:
		s.lookup = minio.BucketLookupDNS
	default:
		fault("addressing %.40q: want %q, %q or nothing", s.Addressing, AddressingPath, AddressingVirtual)
	}
}

func (s *settings) checkCredentials(fault faultFunc) {
	if (s.AccessKey == "") != (s.SecretKey == "") {
		fault("access key or secret key is missing: give both, or neither to have them looked for")
	}
	if s.SessionToken != "" && s.AccessKey == "" {
		fault("a session token belongs to an access key and a secret key")
	}
	if len(s.AccessKey)+len(s.SecretKey)+len(s.SessionToken) > maxCredentialBytes {
		fault("credentials of more than %d bytes", maxCredentialBytes)
	}
	if s.STSEndpoint != "" {
		if u, err := url.Parse(s.STSEndpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			fault("STS endpoint is not http://HOST:PORT or https://HOST")
		}
	}
}

func (s *settings) checkTLS(fault faultFunc) {
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	named := s.CAFile != "" || s.ClientCert != "" || s.ClientKey != ""
	if named && s.host != "" && !s.secure {
		fault("certificates are named, and the endpoint is http: want https")
	}
	if s.CAFile != "" {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		raw, err := os.ReadFile(s.CAFile)
		if err != nil {
			fault("CA file: %w", err)
		} else if !pool.AppendCertsFromPEM(raw) {
			fault("CA file %s has no certificate in PEM form", s.CAFile)
		}
		s.tls.RootCAs = pool
	}
	switch {
	case (s.ClientCert == "") != (s.ClientKey == ""):
		fault("client certificate and client key: give both or neither")
	case s.ClientCert != "":
		// Read again for each connection: certificates are renewed while we run.
		certFile, keyFile := s.ClientCert, s.ClientKey
		if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
			fault("client certificate: %w", err)
		}
		s.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &cert, err
		}
	}
}

func (s *settings) checkEncryption(fault faultFunc) {
	if s.Encryption != EncryptionCustomer && len(s.CustomerKey) > 0 {
		fault("a customer key is given, and encryption is %q: want %q", s.Encryption, EncryptionCustomer)
	}
	if s.Encryption != EncryptionKMS && s.KMSKeyID != "" {
		fault("a KMS key is named, and encryption is %q: want %q", s.Encryption, EncryptionKMS)
	}
	var err error
	switch s.Encryption {
	case EncryptionNone:
	case EncryptionS3:
		s.sse = encrypt.NewSSE()
	case EncryptionKMS:
		s.sse, err = encrypt.NewSSEKMS(s.KMSKeyID, nil)
	case EncryptionCustomer:
		if s.host != "" && !s.secure {
			fault("%s sends its key with each request: want an https endpoint", EncryptionCustomer)
		}
		if s.sse, err = encrypt.NewSSEC(s.CustomerKey); err != nil {
			err = errors.New("want 32 bytes") // not one that could hold the key
		}
		s.customer = s.sse
	default:
		err = fmt.Errorf("want %s, %s, %s or nothing", EncryptionS3, EncryptionKMS, EncryptionCustomer)
	}
	if err != nil {
		fault("encryption %.40q: %w", s.Encryption, err)
	}
}

func (s *settings) checkLimits(fault faultFunc) {
	within(fault, "MaxObjectBytes", &s.MaxObjectBytes, MaxObjectBytes, 1, largestObject)
	within(fault, "PartBytes", &s.PartBytes, defaultPart, smallestPart, largestPart)
	within(fault, "Concurrency", &s.Concurrency, defaultConcurrency, 1, maxConcurrency)
	within(fault, "Retries", &s.Retries, defaultRetries, 1, maxRetries)
	within(fault, "StallTimeout", &s.StallTimeout, defaultStallTimeout, time.Millisecond, time.Hour)
	if s.PartBytes > 0 && s.MaxObjectBytes/s.PartBytes >= maxParts {
		fault("MaxObjectBytes of %d in parts of %d: more than %d parts", s.MaxObjectBytes, s.PartBytes, maxParts)
	}
	if strings.ContainsFunc(s.StorageClass, func(r rune) bool { return (r < 'A' || r > 'Z') && r != '_' }) {
		fault("storage class %.40q is not one: want letters A to Z and _", s.StorageClass)
	}
}

func within[T int | int64 | time.Duration](fault faultFunc, name string, v *T, def, least, most T) {
	if *v == 0 {
		*v = def
	}
	if *v < least || *v > most {
		fault("%s of %v: want %v to %v", name, *v, least, most)
	}
}
