package stokehold

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/s3"
)

// S3 is the cold tier. Fields that are not explained here are those of s3.Config.
type S3 struct {
	Endpoint string // URL, e.g. http://127.0.0.1:9000
	Region   string // default us-east-1
	Bucket   string // default "stokehold"
	// AccessKey and SecretKey, with SessionToken if they are temporary. Without them
	// credentials are looked for in the standard places.
	AccessKey    string
	SecretKey    Secret
	SessionToken Secret
	Profile      string
	STSEndpoint  string
	Addressing   string // "", "path" or "virtual"

	CAFile     string // PEM
	ClientCert string // PEM files
	ClientKey  string
	Proxy      string

	Encryption   string // "", "SSE-S3", "SSE-KMS" or "SSE-C"
	KMSKeyID     string
	CustomerKey  Secret // of SSE-C: 32 bytes in base64
	StorageClass string

	// Syncs declares that the endpoint keeps acknowledged objects through a power cut.
	// While it is unset no batch leaves the warm tier.
	Syncs          bool
	MaxObjectBytes int64
	PartBytes      int64
	Concurrency    int
	Retries        int
	StallTimeout   time.Duration
}

// validate checks what can be checked without reading files or asking anybody;
// s3.Open checks the rest.
func (s S3) validate() []error {
	if s.Endpoint == "" {
		return nil
	}
	var faults []error
	if u, err := url.Parse(s.Endpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		faults = append(faults, fmt.Errorf("S3 endpoint %q is not of the form http://HOST:PORT", s.Endpoint))
	}
	if (s.AccessKey == "") != (s.SecretKey == "") {
		faults = append(faults, errors.New("an S3 endpoint needs an access key and a secret key, or neither to have them looked for"))
	}
	if _, err := s.customerKey(); err != nil {
		faults = append(faults, err)
	}
	return faults
}

func (s S3) customerKey() ([]byte, error) {
	if s.CustomerKey == "" {
		return nil, nil
	}
	key, err := base64.StdEncoding.DecodeString(s.CustomerKey.Reveal())
	if err != nil || len(key) != 32 {
		return nil, errors.New("the S3 customer key is not 32 bytes in base64") // without the key, or a part of it
	}
	return key, nil
}

// config is s in the driver's words.
func (s S3) config() s3.Config {
	key, _ := s.customerKey() // validated before
	return s3.Config{
		Endpoint: s.Endpoint, Region: s.Region, Bucket: s.Bucket, Addressing: s3.Addressing(s.Addressing),
		AccessKey: s.AccessKey, SecretKey: s.SecretKey.Reveal(), SessionToken: s.SessionToken.Reveal(),
		Profile: s.Profile, STSEndpoint: s.STSEndpoint,
		CAFile: s.CAFile, ClientCert: s.ClientCert, ClientKey: s.ClientKey, Proxy: s.Proxy,
		Encryption: s3.Encryption(s.Encryption), KMSKeyID: s.KMSKeyID, CustomerKey: key, StorageClass: s.StorageClass,
		Syncs: s.Syncs, MaxObjectBytes: s.MaxObjectBytes, PartBytes: s.PartBytes, Concurrency: s.Concurrency,
		Retries: s.Retries, StallTimeout: s.StallTimeout,
	}
}

// openCold connects to the object store, if there is one. For a process that only
// observes nothing is written there, not even to probe it.
func (a *App) openCold(ctx context.Context, o options) (tiers.ObjectStore, error) {
	if a.cfg.S3.Endpoint == "" {
		return nil, nil
	}
	looking := o.observing && !o.data
	cfg := a.cfg.S3.config()
	cfg.CreateBucket = true
	cfg.NoProbe = looking
	store, err := s3.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a.onClose(func(context.Context) error { store.Close(); return nil })
	if looking {
		return store, nil
	}
	g := store.Guarantees()
	a.cfg.Log.InfoContext(ctx, "object store", "endpoint", a.cfg.S3.Endpoint, "bucket", a.cfg.S3.Bucket, "guarantees", g)
	if !g.ReadAfterWrite {
		a.cfg.Log.WarnContext(ctx, "the object store did not show what was just written: migrations are verified all the same, and may be tried again often", "notes", g.Notes)
	}
	return store, nil
}
