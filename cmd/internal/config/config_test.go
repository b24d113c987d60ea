package config_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/cmd/internal/config"
)

func flags(t *testing.T, args ...string) *pflag.FlagSet {
	t.Helper()
	fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
	config.Flags(fs)
	config.ServerFlags(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return fs
}

func write(t *testing.T, dir, name, body string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func dev(running config.Found) config.Discover {
	return func(string) (config.Found, bool, error) { return running, true, nil }
}

var running = config.Found{
	NATS:     config.NATS{URL: "nats://127.0.0.1:1111", User: "dev", Password: "dev-pass"},
	Temporal: config.Temporal{Address: "127.0.0.1:2222", UI: "http://127.0.0.1:3333"},
	S3:       config.S3{Endpoint: "http://127.0.0.1:4444", Bucket: "devbucket", AccessKey: "dev-ak", SecretKey: "dev-sk"},
}

func TestLoadPrecedence(t *testing.T) {
	dir := t.TempDir()
	load := func(d config.Discover, environ []string, args ...string) config.Config {
		t.Helper()
		c, err := config.Load(config.Options{Flags: flags(t, args...), Environ: environ, Dir: dir, Discover: d})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	check := func(step string, c config.Config, url config.Endpoint, source string) {
		t.Helper()
		if c.NATS.URL != url || c.Source("nats.url") != source {
			t.Errorf("%s: nats.url = %q from %q, want %q from %q", step, c.NATS.URL.Reveal(), c.Source("nats.url"), url.Reveal(), source)
		}
	}
	none := []string{"HOME=/"}
	check("nothing", load(nil, none), "nats://127.0.0.1:4222", "the default")
	check("dev", load(dev(running), none), "nats://127.0.0.1:1111", "the running dev")
	write(t, dir, config.DefaultFile, "nats:\n  url: nats://file:1\n  password: from-file\n")
	check("file over dev", load(dev(running), none), "nats://file:1", "the configuration file")
	conv := []string{"NATS_URL=nats://env:1"}
	check("environment over file", load(dev(running), conv), "nats://env:1", "the environment")
	both := append(conv, "STOKEHOLD_NATS_URL=nats://own:1")
	check("own environment over conventional", load(dev(running), both), "nats://own:1", "the environment")
	check("flag over environment", load(dev(running), both, "--nats-url=nats://flag:1"), "nats://flag:1", "a flag")
}

func TestDiscoveredServerIsUsedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	c, err := config.Load(config.Options{Dir: dir, Discover: dev(running), Environ: []string{"NATS_URL=nats://elsewhere:4222"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.NATS.User != "" || c.NATS.Password != "" {
		t.Error("dev's NATS credentials would go to another server")
	}
	if c.S3.SecretKey != "dev-sk" || c.S3.Bucket != "devbucket" {
		t.Errorf("S3 was not discovered: %+v", c.S3)
	}
	c, err = config.Load(config.Options{Dir: dir, Discover: dev(running),
		Environ: []string{"AWS_ACCESS_KEY_ID=mine", "AWS_SECRET_ACCESS_KEY=mine-too"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.S3.AccessKey != "dev-ak" || c.S3.SecretKey != "dev-sk" {
		t.Error("the user's AWS credentials would go to the dev gateway")
	}
	c, err = config.Load(config.Options{Dir: dir, Discover: dev(running),
		Environ: []string{"AWS_ACCESS_KEY_ID=mine", "AWS_SECRET_ACCESS_KEY=mine-too", "S3_ENDPOINT=https://s3.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if c.S3.AccessKey != "mine" || c.S3.SecretKey != "mine-too" {
		t.Error("the user's AWS credentials are not used for the endpoint they named")
	}
}

func TestLoadConventionalEnvironment(t *testing.T) {
	c, err := config.Load(config.Options{Dir: t.TempDir(), Environ: []string{
		"TEMPORAL_ADDRESS=t:1", "TEMPORAL_NAMESPACE=ns", "TEMPORAL_API_KEY=key", "TEMPORAL_TLS=true",
		"NATS_USER=u", "NATS_PASSWORD=p", "NATS_TOKEN=t", "NATS_CREDS=/c",
		"S3_ENDPOINT=https://s3", "S3_BUCKET=b", "AWS_REGION=eu-1", "AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=s",
		"STOKEHOLD_POLICIES=a.yaml:b.yaml", "STOKEHOLD_TEMPORAL_TASK_QUEUE=q", "STOKEHOLD_STATE=/st",
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(c.Temporal.Address, c.Temporal.Namespace, c.Temporal.APIKey.Reveal(), c.Temporal.TLS, c.Temporal.TaskQueue,
		c.NATS.User, c.NATS.Password.Reveal(), c.NATS.Token.Reveal(), c.NATS.Creds,
		c.S3.Endpoint, c.S3.Bucket, c.S3.Region, c.S3.AccessKey.Reveal(), c.S3.SecretKey.Reveal(), c.Policies, c.StateDir)
	want := fmt.Sprint("t:1", "ns", "key", true, "q", "u", "p", "t", "/c", "https://s3", "b", "eu-1", "a", "s", []string{"a.yaml", "b.yaml"}, "/st")
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLoadFlight(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, config.DefaultFile, "flight:\n  addr: 10.0.0.7:8815\n  cert: /c\n  key: /k\n  ca: /ca\n  token: from-file\n")
	c, err := config.Load(config.Options{
		Dir: dir, Environ: []string{"STOKEHOLD_FLIGHT_TOKEN=from-environment", "STOKEHOLD_FLIGHT_INSECURE=true", "STOKEHOLD_FLIGHT_ADDR=:1"},
		Flags: flags(t, "--flight-addr=:8815", "--flight-advertise=host-7:8815"),
	})
	want := config.Flight{
		Addr: ":8815", Advertise: "host-7:8815", Token: "from-environment", Cert: "/c", Key: "/k", CA: "/ca", Insecure: true,
	}
	if err != nil || c.Flight != want {
		t.Errorf("%+v, %v", c.Flight, err)
	}
}

func TestLoadHot(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, config.DefaultFile, "hot:\n  bytes: 1048576\n  limit: 2GiB\n  wait: 5ms\n  prefault: true\n  huge_pages: advise\n")
	c, err := config.Load(config.Options{Dir: dir, Environ: []string{"STOKEHOLD_HOT_WAIT=50ms", "STOKEHOLD_HOT_HUGE_PAGES=reserved"}})
	want := config.Hot{Bytes: 1 << 20, Limit: 2 << 30, Wait: 50 * time.Millisecond, Prefault: true, HugePages: config.HugePages(shm.ReservedHugePages)}
	if err != nil || c.Hot != want {
		t.Errorf("%+v, %v", c.Hot, err)
	}
	c, err = config.Load(config.Options{Dir: dir, Flags: flags(t, "--hot-bytes=512 MiB")})
	if err != nil || c.Hot.Bytes != 512<<20 {
		t.Errorf("%+v, %v", c.Hot, err)
	}
	c, err = config.Load(config.Options{Dir: t.TempDir(), Environ: []string{"HOME=/"}})
	if err != nil || c.Hot != (config.Hot{}) {
		t.Errorf("by default %+v, %v", c.Hot, err)
	}
	_, err = config.Load(config.Options{Dir: t.TempDir(), Environ: []string{"STOKEHOLD_HOT_BYTES=64KiB", "STOKEHOLD_HOT_LIMIT=1KiB", "STOKEHOLD_HOT_WAIT=-1s"}})
	for _, want := range []string{"hot.bytes (from the environment): 64KiB", "hot.limit (from the environment): 1KiB", "hot.wait (from the environment)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q: %v", want, err)
		}
	}
	_, err = config.Load(config.Options{Dir: t.TempDir(), Environ: []string{"STOKEHOLD_HOT_BYTES=64MB", "STOKEHOLD_HOT_LIMIT=9999999999GiB", "STOKEHOLD_HOT_HUGE_PAGES=yes"}})
	for _, want := range []string{`"64MB"`, `"9999999999GiB"`, `"yes"`} {
		if !errors.Is(err, config.ErrConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s: %v", want, err)
		}
	}
}

func TestLoadFaults(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		opts config.Options
		want string
	}{
		"unknown key":      {config.Options{Flags: flags(t, "--config", write(t, dir, "a.yaml", "nats:\n  ulr: x\n"))}, "unknown key nats.ulr"},
		"not yaml":         {config.Options{Flags: flags(t, "--config", write(t, dir, "b.yaml", "nats: [\n"))}, "b.yaml"},
		"missing file":     {config.Options{Flags: flags(t, "--config", filepath.Join(dir, "none.yaml"))}, "none.yaml"},
		"bad endpoint":     {config.Options{Environ: []string{"NATS_URL=nats://u:pw@:x/"}}, "nats.url (from the environment)"},
		"half of the keys": {config.Options{Environ: []string{"AWS_ACCESS_KEY_ID=x", "S3_ENDPOINT=http://h"}}, "AWS_SECRET_ACCESS_KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			c.opts.Dir = t.TempDir()
			_, err := config.Load(c.opts)
			if !errors.Is(err, config.ErrConfig) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want ErrConfig saying %q", err, c.want)
			}
			if strings.Contains(err.Error(), "pw") {
				t.Fatalf("error shows a password: %v", err)
			}
		})
	}
}

func TestNothingPrintsASecret(t *testing.T) {
	const secret = "hunter2"
	c := config.Config{
		NATS:     config.NATS{URL: "nats://u:" + secret + "@h:1,nats://" + secret + "@h:2", Password: secret, Token: secret},
		Temporal: config.Temporal{APIKey: secret},
		Flight:   config.Flight{Token: secret},
		S3:       config.S3{Endpoint: "https://a:" + secret + "@s3?X-Signature=" + secret, AccessKey: secret, SecretKey: secret},
	}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		fmt.Fprintf(&out, verb+"\n", c)
		fmt.Fprintf(&out, verb+"\n", &c)
		fmt.Fprintf(&out, verb+"\n", c.NATS.Password)
		fmt.Fprintf(&out, verb+"\n", c.NATS.URL)
		fmt.Fprintf(&out, verb+"\n", config.Endpoint("nats://u:a,"+secret+"@h:1,nats://h:2"))
		fmt.Fprintf(&out, verb+"\n", config.Endpoint("nats://u:?"+secret+"@h:1"))
	}
	if err := json.NewEncoder(&out).Encode(c); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "c", c, "s", c.S3.SecretKey, "e", c.S3.Endpoint)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "c", c, "s", c.S3.SecretKey, "e", c.S3.Endpoint)
	for _, bad := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret)} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("printed %q:\n%s", bad, out.String())
		}
	}
	if !strings.Contains(out.String(), "@h:1") {
		t.Error("the address itself should stay readable")
	}
}

func TestCredentialsLeaveTheURL(t *testing.T) {
	for in, want := range map[string]string{
		"nats://u:p@h:1":   "nats://h:1 u p ",
		"nats://secret@h:": "nats://h:   secret",
		"nats://h:1":       "nats://h:1   ",
	} {
		c, err := config.Load(config.Options{Dir: t.TempDir(), Environ: []string{"NATS_URL=" + in}})
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(c.NATS.URL.Reveal(), " ", c.NATS.User, " ", c.NATS.Password.Reveal(), " ", c.NATS.Token.Reveal()); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

func TestHostPort(t *testing.T) {
	for in, want := range map[config.Endpoint]string{
		"nats://h:1": "h:1", "nats://h": "h:4222", "h:9": "h:9", "h": "h:4222", "nats://u:p@h:1,nats://h2:2": "h:1", "nats://[::1]:7": "[::1]:7",
	} {
		if got, err := in.HostPort("4222"); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	if got, _ := config.Endpoint("https://s3.example.org").HostPort(""); got != "s3.example.org:443" {
		t.Errorf("https: %s", got)
	}
	if _, err := config.Endpoint("nats://u:pw@").HostPort("1"); err == nil {
		t.Error("want an error without a host")
	}
}
