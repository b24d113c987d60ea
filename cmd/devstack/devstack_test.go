package devstack_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"

	"github.com/stokehold/stokehold/cmd/devstack"
	"github.com/stokehold/stokehold/cmd/internal/stacktest"
)

func TestStackServes(t *testing.T) {
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := stacktest.Start(t)
	e := s.Endpoints()
	if err := s.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}

	t.Run("leaves the working directory alone", func(t *testing.T) {
		if after, err := os.Getwd(); err != nil || after != before {
			t.Fatalf("working directory %q (%v), want %q", after, err, before)
		}
	})
	t.Run("nats refuses a stranger", func(t *testing.T) {
		nc, err := nats.Connect(e.NATSURL)
		if err == nil {
			nc.Close()
		}
		if !errors.Is(err, nats.ErrAuthorization) {
			t.Fatalf("connecting without credentials: %v, want %v", err, nats.ErrAuthorization)
		}
	})
	t.Run("jetstream stores", func(t *testing.T) { writeMessage(t, e); readMessage(t, e) })
	t.Run("temporal has its search attributes", func(t *testing.T) {
		c := temporalClient(t, e)
		got, err := c.OperatorService().ListSearchAttributes(t.Context(), &operatorservice.ListSearchAttributesRequest{Namespace: e.Namespace})
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got.GetCustomAttributes(), devstack.SearchAttributes()) {
			t.Fatalf("search attributes %v, want %v", got.GetCustomAttributes(), devstack.SearchAttributes())
		}
		if typ := got.GetCustomAttributes()["StokeholdBatches"]; typ != enums.INDEXED_VALUE_TYPE_INT {
			t.Fatalf("StokeholdBatches is %v", typ)
		}
	})
	t.Run("s3 stores", func(t *testing.T) { testObjects(t, e) })
	t.Run("s3 refuses a stranger", func(t *testing.T) {
		if code := request(t, e.S3Endpoint+"/"+e.S3Bucket+"/x", ""); code != http.StatusForbidden {
			t.Fatalf("reading without a signature: %d, want 403", code)
		}
	})
	t.Run("ui shows the namespace", func(t *testing.T) {
		for _, path := range []string{"/", "/api/v1/settings", "/api/v1/namespaces/default"} {
			if code := request(t, e.UIURL+path, ""); code != http.StatusOK {
				t.Errorf("GET %s: %d", path, code)
			}
		}
	})
	t.Run("ui refuses another host's name", func(t *testing.T) {
		if code := request(t, e.UIURL+"/api/v1/namespaces", "rebound.example"); code != http.StatusMisdirectedRequest {
			t.Fatalf("request for another host: %d, want 421", code)
		}
	})
	t.Run("every listener is on loopback", func(t *testing.T) { testLoopback(t) })
	t.Run("secrets stay out of logs and prints", func(t *testing.T) { testSecrets(t, s) })
	t.Run("another process finds it", func(t *testing.T) {
		got, err := devstack.Discover(s.Dir())
		if err != nil || got != e {
			t.Fatalf("Discover: %v, %v; want %v", got, err, e)
		}
	})
	t.Run("its directory is locked", func(t *testing.T) {
		_, err := devstack.Start(t.Context(), devstack.Options{Dir: s.Dir(), FreePorts: true})
		var locked *devstack.LockedError
		if !errors.As(err, &locked) || locked.PID != os.Getpid() || !errors.Is(err, devstack.ErrLocked) {
			t.Fatalf("second start on one directory: %v, want a LockedError of process %d", err, os.Getpid())
		}
		oneLine(t, err)
	})
	t.Run("one gateway in a process", func(t *testing.T) {
		_, err := devstack.Start(t.Context(), devstack.Options{Dir: t.TempDir(), FreePorts: true, WithoutTemporal: true})
		if !errors.Is(err, devstack.ErrS3Running) {
			t.Fatalf("second gateway: %v, want %v", err, devstack.ErrS3Running)
		}
	})
}

// TestStackStartsAgain closes a stack and starts another on its directory, in one process.
func TestStackStartsAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	for round := range 3 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			s := stacktest.Start(t, stacktest.In(dir))
			e := s.Endpoints()
			if round == 0 {
				writeAll(t, e)
			}
			readAll(t, e)
			stacktest.Close(t, s)
			for _, address := range listeners(e) {
				l, err := net.Listen("tcp", address)
				if err != nil {
					t.Errorf("%s is not free after Close: %v", address, err)
					continue
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			if err := s.Close(t.Context()); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if err := s.Err(); !errors.Is(err, devstack.ErrClosed) {
				t.Errorf("Err after Close: %v, want %v", err, devstack.ErrClosed)
			}
			if _, err := devstack.Discover(dir); !errors.Is(err, devstack.ErrNotRunning) {
				t.Errorf("Discover after Close: %v, want %v", err, devstack.ErrNotRunning)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	t.Run("a used port", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		port := l.Addr().(*net.TCPAddr).Port
		for name, ports := range map[string]devstack.Ports{
			"NATS": {NATS: port}, "Temporal": {Temporal: port}, "Temporal UI": {UI: port}, "S3": {S3: port},
		} {
			dir := t.TempDir()
			_, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, FreePorts: true, Ports: ports})
			var used *devstack.PortError
			if !errors.As(err, &used) || used.Port != port || used.Service != name || !errors.Is(err, devstack.ErrPortInUse) {
				t.Fatalf("%s on a used port: %v, want a PortError", name, err)
			}
			if !strings.Contains(err.Error(), strconv.Itoa(port)) {
				t.Errorf("%q does not name port %d", err, port)
			}
			oneLine(t, err)
			if _, err := devstack.Discover(dir); !errors.Is(err, devstack.ErrNotRunning) {
				t.Errorf("%s: the directory is still taken: %v", name, err)
			}
		}
	})
	t.Run("a directory that cannot be made", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{file, filepath.Join(file, "below"), "/proc/stokehold"} {
			_, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, FreePorts: true})
			var unusable *devstack.StateError
			if !errors.As(err, &unusable) || !errors.Is(err, devstack.ErrState) {
				t.Fatalf("start in %s: %v, want a StateError", dir, err)
			}
			if !strings.Contains(err.Error(), dir) {
				t.Errorf("%q does not name %s", err, dir)
			}
			oneLine(t, err)
		}
	})
	t.Run("options out of range, all at once", func(t *testing.T) {
		_, err := devstack.Start(t.Context(), devstack.Options{Ports: devstack.Ports{NATS: -1, S3: 70000}, StartTimeout: -1})
		for _, part := range []string{"Dir", "-1", "70000", "StartTimeout"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%v does not name %s", err, part)
			}
		}
	})
	t.Run("damaged credentials", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "credentials.json"), []byte(`{"nats_user":"x"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := devstack.Start(t.Context(), devstack.Options{Dir: dir, FreePorts: true}); !errors.Is(err, devstack.ErrState) {
			t.Fatalf("start: %v, want %v", err, devstack.ErrState)
		}
	})
}

// TestStartGivesUp ends the context at several moments of a start: it must fail with the context's error, and
// leave the directory and the gateway to the next start.
func TestStartGivesUp(t *testing.T) {
	for _, after := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond, 300 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			s, err := devstack.Start(ctx, devstack.Options{Dir: dir, FreePorts: true})
			if err == nil {
				// Quicker than the deadline, which is no fault.
				stacktest.Close(t, s)
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("start: %v, want %v", err, context.DeadlineExceeded)
			}
			if _, err := devstack.Discover(dir); !errors.Is(err, devstack.ErrNotRunning) {
				t.Fatalf("something still holds the directory: %v", err)
			}
			next := stacktest.Start(t, stacktest.In(dir), stacktest.WithoutTemporal)
			if err := putObject(t.Context(), s3Client(next.Endpoints()), "key", "value"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	const text = "hunter2"
	s := devstack.Secret(text)
	e := devstack.Endpoints{NATSPassword: s, S3SecretKey: s}
	var logged strings.Builder
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("x", "secret", s, "endpoints", e)
	asJSON, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprint(s), fmt.Sprintf("%s %v %q %x %d %#v %+v", s, s, s, s, s, s, s),
		fmt.Sprintf("%v %+v %#v", e, e, &e), logged.String(), string(asJSON),
	} {
		if strings.Contains(out, text) || strings.Contains(out, fmt.Sprintf("%x", text)) {
			t.Errorf("%q shows the secret", out)
		}
	}
	if s.Reveal() != text {
		t.Errorf("Reveal gives %q", s.Reveal())
	}
}

func testLoopback(t *testing.T) {
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		mine := sockets(t)
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			const listening = "0A"
			if len(f) < 10 || f[3] != listening || !slices.Contains(mine, f[9]) {
				continue
			}
			if !strings.HasPrefix(f[1], "0100007F:") {
				t.Errorf("a listener of this process is not on 127.0.0.1: %s in %s", f[1], file)
			}
		}
	}
}

// sockets gives the inodes of this process's sockets.
func sockets(t *testing.T) (inodes []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:[") {
			inodes = append(inodes, strings.Trim(target, "socket:[]"))
		}
	}
	return inodes
}

func testSecrets(t *testing.T, s *devstack.Stack) {
	e := s.Endpoints()
	secrets := []string{e.NATSPassword.Reveal(), e.S3SecretKey.Reveal()}
	for _, secret := range secrets {
		if len(secret) < 32 {
			t.Errorf("a secret has %d characters", len(secret))
		}
	}
	err := filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 && filepath.Dir(path) == s.Dir() {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if !strings.HasSuffix(path, ".log") && filepath.Base(path) != "endpoints.json" {
			return nil
		}
		data, err := os.ReadFile(path)
		for _, secret := range secrets {
			if strings.Contains(string(data), secret) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func listeners(e devstack.Endpoints) []string {
	return []string{
		strings.TrimPrefix(e.NATSURL, "nats://"), e.TemporalAddress,
		strings.TrimPrefix(e.UIURL, "http://"), strings.TrimPrefix(e.S3Endpoint, "http://"),
	}
}

// request returns the status code of a GET.
func request(t *testing.T, url, host string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func oneLine(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); strings.Contains(text, "\n") {
		t.Errorf("more than one line: %q", text)
	}
}
