package s3_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/internal/miniotest"
	"github.com/stokehold/stokehold/tiers/s3"
	"github.com/stokehold/stokehold/tiers/tierstest"

	"github.com/stokehold/stokehold/tiers"
)

// issuer is an OpenID provider, of which a web identity is a signed token.
type issuer struct {
	*httptest.Server
	key *rsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any
		url := "http://" + r.Host // i.URL may not be set yet
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			answer = map[string]any{
				"issuer": url, "jwks_uri": url + "/keys", "authorization_endpoint": url + "/auth", "token_endpoint": url + "/token",
				"response_types_supported": []string{"id_token"}, "subject_types_supported": []string{"public"},
				"id_token_signing_alg_values_supported": []string{"RS256"},
			}
		case "/keys":
			answer = map[string]any{"keys": []any{map[string]any{
				"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k",
				"n": base64.RawURLEncoding.EncodeToString(key.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(key.E)).Bytes()),
			}}}
		default:
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(i.Close)
	return i
}

// token is a JWT of this issuer, which MinIO takes for one that may read and write.
func (i *issuer) token(t *testing.T) string {
	t.Helper()
	part := func(v any) string {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(raw)
	}
	signed := part(map[string]any{"alg": "RS256", "typ": "JWT", "kid": "k"}) + "." + part(map[string]any{
		"iss": i.URL, "aud": "stokehold", "azp": "stokehold", "sub": "worker-1", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "policy": "readwrite",
	})
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// forget empties the environment of what the standard chain looks at.
func forget(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_PROFILE", "AWS_ROLE_ARN",
		"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN",
	} {
		t.Setenv(name, "")
	}
	none := filepath.Join(t.TempDir(), "none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", none)
	t.Setenv("AWS_CONFIG_FILE", none)
	t.Setenv("HOME", none)
}

func TestCredentialsFromTheStandardChain(t *testing.T) {
	iss := newIssuer(t)
	m := miniotest.Start(t, miniotest.Env(
		"MINIO_IDENTITY_OPENID_CONFIG_URL="+iss.URL+"/.well-known/openid-configuration",
		"MINIO_IDENTITY_OPENID_CLIENT_ID=stokehold", "MINIO_IDENTITY_OPENID_CLIENT_SECRET=unused", "MINIO_IDENTITY_OPENID_CLAIM_NAME=policy"))
	cfg := onMinIO(m, "chain")
	cfg.AccessKey, cfg.SecretKey = "", ""
	file := func(t *testing.T, content string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("AWS variables", func(t *testing.T) {
		forget(t)
		t.Setenv("AWS_ACCESS_KEY_ID", m.AccessKey)
		t.Setenv("AWS_SECRET_ACCESS_KEY", m.SecretKey)
		roundTrip(t, open(t, cfg))
	})
	t.Run("MinIO variables", func(t *testing.T) {
		forget(t)
		t.Setenv("MINIO_ROOT_USER", m.AccessKey)
		t.Setenv("MINIO_ROOT_PASSWORD", m.SecretKey)
		roundTrip(t, open(t, cfg))
	})
	t.Run("shared file", func(t *testing.T) {
		forget(t)
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file(t, fmt.Sprintf(
			"[default]\naws_access_key_id = no\naws_secret_access_key = no\n[cold]\naws_access_key_id = %s\naws_secret_access_key = %s\n", m.AccessKey, m.SecretKey)))
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrAccess) {
			t.Errorf("the default profile: %v, want ErrAccess", err)
		}
		cfg := cfg
		cfg.Profile = "cold"
		roundTrip(t, open(t, cfg))
	})
	t.Run("web identity", func(t *testing.T) {
		forget(t)
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file(t, iss.token(t)))
		cfg := cfg
		cfg.STSEndpoint = m.URL
		roundTrip(t, open(t, cfg))
	})
	t.Run("web identity that is refused", func(t *testing.T) {
		forget(t)
		token := newIssuer(t).token(t)
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", file(t, token))
		cfg := cfg
		cfg.STSEndpoint = m.URL
		_, err := s3.Open(t.Context(), cfg)
		if !errors.Is(err, s3.ErrAccess) || strings.Contains(err.Error(), token[:20]) {
			t.Errorf("got %v, want ErrAccess", err)
		}
	})
	t.Run("role of a container", func(t *testing.T) {
		forget(t)
		role := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_ = json.NewEncoder(w).Encode(map[string]any{
				"AccessKeyId": m.AccessKey, "SecretAccessKey": m.SecretKey, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
			})
		}))
		defer role.Close()
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.URL)
		roundTrip(t, open(t, cfg))
	})
	t.Run("none", func(t *testing.T) {
		forget(t)
		nothing := httptest.NewServer(http.NotFoundHandler())
		defer nothing.Close()
		t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", nothing.URL)
		if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrAccess) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
			t.Errorf("got %v, want ErrAccess", err)
		}
	})
	t.Run("wrong ones", func(t *testing.T) {
		for _, wrong := range []func(*s3.Config){
			func(c *s3.Config) { c.AccessKey = "nobody" }, func(c *s3.Config) { c.SecretKey = "secret-of-nobody" },
		} {
			cfg := onMinIO(m, "chain")
			wrong(&cfg)
			_, err := s3.Open(t.Context(), cfg)
			if !errors.Is(err, s3.ErrAccess) || strings.Contains(err.Error(), cfg.SecretKey) || strings.Contains(err.Error(), cfg.AccessKey) {
				t.Errorf("got %v, want ErrAccess", err)
			}
		}
	})
}

// limited returns credentials that may do what the policy of the documentation
// says, for this bucket.
func limited(t *testing.T, m *minioserver.Server, bucket string) s3.Config {
	t.Helper()
	policy, err := os.ReadFile("../../docs/s3-policy.json")
	if err != nil {
		t.Fatal(err)
	}
	creds, err := credentials.NewSTSAssumeRole(m.URL, credentials.STSAssumeRoleOptions{
		AccessKey: m.AccessKey, SecretKey: m.SecretKey, Policy: strings.ReplaceAll(string(policy), "BUCKET", bucket),
	})
	if err != nil {
		t.Fatal(err)
	}
	v, err := creds.GetWithContext(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := onMinIO(m, bucket)
	cfg.CreateBucket = false
	cfg.AccessKey, cfg.SecretKey, cfg.SessionToken = v.AccessKeyID, v.SecretAccessKey, v.SessionToken
	return cfg
}

func TestLeastPolicyIsEnough(t *testing.T) {
	m := miniotest.Start(t)
	open(t, onMinIO(m, "least"))
	open(t, onMinIO(m, "others"))
	if err := raw(t, m, nil).EnableVersioning(t.Context(), "least"); err != nil {
		t.Fatal(err)
	}
	cfg := limited(t, m, "least")
	s := open(t, cfg)
	if g := s.Guarantees(); len(g.Notes) > 0 || !g.Versioned || !g.ConditionalPut {
		t.Errorf("%+v", g)
	}
	tierstest.RunObjectStore(t, func(*testing.T) tiers.ObjectStore { return s })
	if _, err := s.SweepPartial(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if _, err := (minio.Core{Client: raw(t, m, nil)}).NewMultipartUpload(t.Context(), "least", "begun", minio.PutObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if n, err := s.SweepPartial(t.Context(), 0); err != nil || n != 1 {
		t.Errorf("swept %d, %v, want the upload that was begun", n, err)
	}
	cfg.Bucket = "others"
	if _, err := s3.Open(t.Context(), cfg); !errors.Is(err, s3.ErrAccess) {
		t.Errorf("another bucket: %v, want ErrAccess", err)
	}
	core, err := minio.New(strings.TrimPrefix(m.URL, "http://"), &minio.Options{Creds: credentials.NewStaticV4(cfg.AccessKey, cfg.SecretKey, cfg.SessionToken)})
	if err != nil {
		t.Fatal(err)
	}
	if err := core.RemoveBucket(t.Context(), "least"); err == nil {
		t.Error("the policy lets the bucket be removed")
	}
	if err := core.SetBucketPolicy(t.Context(), "least", `{"Version":"2012-10-17","Statement":[]}`); err == nil {
		t.Error("the policy lets the bucket's policy be set")
	}
}

// No way to print a configuration, a store or an error shows a secret.
func TestSecretsStayIn(t *testing.T) {
	m := miniotest.Start(t)
	cfg := onMinIO(m, "hush")
	cfg.Proxy = "none"
	s := open(t, cfg)
	_, wrong := s3.Open(t.Context(), func() s3.Config { c := cfg; c.Bucket = "nobodys"; c.CreateBucket = false; return c }())
	m.Stop()
	down := s.Put(t.Context(), "k", []byte("x"))
	if wrong == nil || down == nil {
		t.Fatalf("%v, %v", wrong, down)
	}
	cfg.CustomerKey = []byte("the-customer's-key-of-32-bytes!!")
	asJSON, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(h).LogAttrs(context.Background(), slog.LevelInfo, "x", slog.Any("cfg", cfg), slog.Any("err", wrong), slog.Any("err", down), slog.Any("found", s.Guarantees()))
	}
	for _, out := range []string{log.String(), string(asJSON), fmt.Sprintf("%v %+v %#v %s", cfg, cfg, &cfg, cfg), fmt.Sprintf("%v %+v %#v", s, s, s), wrong.Error(), down.Error()} {
		// The last are the key's first bytes as fmt prints a slice.
		for _, secret := range []string{m.AccessKey, m.SecretKey, "the-customer", "116 104 101 45"} {
			if strings.Contains(out, secret) {
				t.Errorf("%q in %.200q", secret, out)
			}
		}
	}
}
