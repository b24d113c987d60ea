package devstack

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold"
)

// Secret is a credential that prints as "[redacted]" whatever the verb.
type Secret = stokehold.Secret

// Endpoints say where a stack listens and how to be let in. Addresses of servers that were left out are empty.
type Endpoints struct {
	NATSURL      string // nats://127.0.0.1:PORT, without credentials
	NATSUser     string
	NATSPassword Secret

	TemporalAddress string // host:port of the frontend
	Namespace       string

	UIURL string // http://127.0.0.1:PORT

	S3Endpoint  string // http://127.0.0.1:PORT
	S3Region    string
	S3Bucket    string
	S3AccessKey string
	S3SecretKey Secret
}

type credentials struct {
	NATSUser     string `json:"nats_user"`
	NATSPassword string `json:"nats_password"`
	S3AccessKey  string `json:"s3_access_key"`
	S3SecretKey  string `json:"s3_secret_key"`
}

type addresses struct {
	NATSURL         string `json:"nats_url"`
	TemporalAddress string `json:"temporal_address,omitempty"`
	Namespace       string `json:"temporal_namespace,omitempty"`
	UIURL           string `json:"temporal_ui_url,omitempty"`
	S3Endpoint      string `json:"s3_endpoint,omitempty"`
	S3Region        string `json:"s3_region,omitempty"`
	S3Bucket        string `json:"s3_bucket,omitempty"`
}

func endpoints(a addresses, c credentials) Endpoints {
	return Endpoints{
		NATSURL: a.NATSURL, NATSUser: c.NATSUser, NATSPassword: Secret(c.NATSPassword),
		TemporalAddress: a.TemporalAddress, Namespace: a.Namespace, UIURL: a.UIURL,
		S3Endpoint: a.S3Endpoint, S3Region: a.S3Region, S3Bucket: a.S3Bucket,
		S3AccessKey: c.S3AccessKey, S3SecretKey: Secret(c.S3SecretKey),
	}
}

// Discover gives the endpoints of the stack that runs on dir, for a client in another process of the same user.
// It fails with ErrNotRunning where none does.
func Discover(dir string) (Endpoints, error) {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, fs.ErrNotExist) {
		return Endpoints{}, fmt.Errorf("%w %s: start one there", ErrNotRunning, dir)
	}
	if err != nil {
		return Endpoints{}, &StateError{Op: "read", Path: filepath.Join(dir, "lock"), Err: err}
	}
	defer func() { _ = f.Close() }()
	// A shared lock succeeds only where nobody holds the exclusive one. It is let go with the descriptor.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err == nil {
		return Endpoints{}, fmt.Errorf("%w %s: start one there", ErrNotRunning, dir)
	}
	var a addresses
	if err := readJSON(filepath.Join(dir, "endpoints.json"), &a); errors.Is(err, fs.ErrNotExist) {
		return Endpoints{}, fmt.Errorf("%w %s yet: it is starting", ErrNotRunning, dir)
	} else if err != nil {
		return Endpoints{}, err
	}
	var c credentials
	if err := readJSON(filepath.Join(dir, "credentials.json"), &c); err != nil {
		return Endpoints{}, err
	}
	return endpoints(a, c), nil
}

// state is an opened, locked state directory.
type state struct {
	dir  string // absolute
	lock *os.File
	cred credentials
}

func openState(dir string) (*state, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, &StateError{Op: "find", Path: dir, Err: err}
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, &StateError{Op: "create", Path: abs, Err: err}
	}
	s := &state{dir: abs}
	if s.lock, err = lockDir(abs); err != nil {
		return nil, err
	}
	for _, sub := range []string{"nats", "temporal", "s3", "s3-meta", "logs"} {
		if err := os.MkdirAll(s.path(sub), 0o700); err != nil {
			s.close()
			return nil, &StateError{Op: "create", Path: s.path(sub), Err: err}
		}
	}
	if s.cred, err = loadCredentials(s.path("credentials.json")); err != nil {
		s.close()
		return nil, err
	}
	// A stack killed before leaves its addresses behind; nobody may follow them while this one starts.
	if err := os.Remove(s.path("endpoints.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.close()
		return nil, &StateError{Op: "write", Path: s.path("endpoints.json"), Err: err}
	}
	return s, nil
}

func (s *state) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *state) publish(a addresses) error { return writeJSON(s.path("endpoints.json"), a) }

// close removes the addresses and lets the directory go. The lock file stays: removing it would let two
// processes hold locks on two different files of one name.
func (s *state) close() {
	if s.lock == nil {
		return
	}
	_ = os.Remove(s.path("endpoints.json"))
	_ = s.lock.Truncate(0)
	_ = s.lock.Close()
	s.lock = nil
}

func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &StateError{Op: "write", Path: path, Err: err}
	}
	if err := flockSoon(f); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &StateError{Op: "lock", Path: path, Err: err}
		}
		text := make([]byte, 32)
		n, _ := f.ReadAt(text, 0)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
		return nil, &LockedError{Dir: dir, PID: pid}
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, &StateError{Op: "write", Path: path, Err: err}
	}
	return f, nil
}

// lockPatience is how long a lock that is held may take to come free: a process
// that was just killed holds its files until the kernel has taken it apart.
const lockPatience = time.Second

func flockSoon(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
		<-time.After(20 * time.Millisecond)
	}
}

func loadCredentials(path string) (credentials, error) {
	var c credentials
	err := readJSON(path, &c)
	if err == nil {
		if c.NATSUser == "" || c.NATSPassword == "" || c.S3AccessKey == "" || c.S3SecretKey == "" {
			return c, fmt.Errorf("%w: %s lacks a credential: remove the file to make new ones", ErrState, path)
		}
		return c, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	c = credentials{NATSUser: "stokehold", NATSPassword: random(32), S3AccessKey: "STOKE" + strings.ToUpper(rand.Text()[:15]), S3SecretKey: random(30)}
	return c, writeJSON(path, c)
}

// random gives n random bytes as text that needs no escaping in a URL.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: it crashes the program instead
	return base64.RawURLEncoding.EncodeToString(b)
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return &StateError{Op: "read", Path: path, Err: err}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return &StateError{Op: "read", Path: path, Err: err}
	}
	return nil
}

// writeJSON replaces path as a whole, with mode 0600 and synced, so that a crash leaves the old or the new file.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return &StateError{Op: "write", Path: path, Err: err}
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(append(data, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return &StateError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
