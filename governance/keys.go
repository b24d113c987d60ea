package governance

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
)

// Key is a secret that stamps are signed with.
type Key struct {
	ID     string // 1 to 32 of a-z, 0-9, - and _; travels in the stamp
	Secret []byte // 32 to 1024 random bytes
}

// String hides the secret.
func (k Key) String() string { return "key " + k.ID }

// GoString hides the secret.
func (k Key) GoString() string { return k.String() }

// LogValue hides the secret.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

const (
	minSecretBytes = 32
	maxSecretBytes = 1024
	maxKeys        = 32
	maxKeyIDLen    = 32
)

var keyID = regexp.MustCompile(`^[a-z0-9_-]{1,32}$`)

// NewKey returns a key with a fresh random secret.
func NewKey(id string) (Key, error) {
	k := Key{ID: id, Secret: make([]byte, 32)}
	if _, err := rand.Read(k.Secret); err != nil {
		return Key{}, fmt.Errorf("governance: make a key: %w", err)
	}
	return k, k.validate()
}

func (k Key) validate() error {
	switch {
	case !keyID.MatchString(k.ID):
		return fmt.Errorf("%w: id %q; use 1 to 32 of a-z, 0-9, - and _", ErrKey, k.ID)
	case len(k.Secret) < minSecretBytes || len(k.Secret) > maxSecretBytes:
		return fmt.Errorf("%w: the secret of %s has %d bytes; it must have %d to %d", ErrKey, k.ID, len(k.Secret), minSecretBytes, maxSecretBytes)
	}
	return nil
}

// KeyRing holds the keys of a deployment: one signs, all verify. Rotation is
// three steps: add the new key as a verifying one everywhere, make it the
// signing one, drop the old one when no event under it is left in the stream.
// Immutable and safe for concurrent use.
type KeyRing struct {
	signing *macKey
	keys    map[string]*macKey
}

// NewKeyRing returns a ring that signs with the first key and verifies with all.
func NewKeyRing(signing Key, verifying ...Key) (*KeyRing, error) {
	if len(verifying) >= maxKeys {
		return nil, fmt.Errorf("%w: %d keys; the limit is %d", ErrKey, len(verifying)+1, maxKeys)
	}
	r := &KeyRing{keys: map[string]*macKey{}}
	for _, k := range append([]Key{signing}, verifying...) {
		if err := k.validate(); err != nil {
			return nil, err
		}
		if r.keys[k.ID] != nil {
			return nil, fmt.Errorf("%w: id %q is there twice", ErrKey, k.ID)
		}
		r.keys[k.ID] = newMACKey(k)
	}
	r.signing = r.keys[signing.ID]
	return r, nil
}

// SigningKey returns the id of the signing key.
func (r *KeyRing) SigningKey() string { return r.signing.id }

// macKey computes HMACs with states that are keyed once and reused.
type macKey struct {
	id   string
	pool sync.Pool
}

type macState struct {
	h   hash.Hash
	buf []byte
}

func newMACKey(k Key) *macKey {
	secret := bytes.Clone(k.Secret)
	m := &macKey{id: k.ID}
	m.pool.New = func() any {
		return &macState{h: hmac.New(sha256.New, secret), buf: make([]byte, 0, sha256.Size)}
	}
	return m
}

// sum writes the HMAC-SHA256 of msg to out.
func (m *macKey) sum(out *[sha256.Size]byte, msg []byte) {
	s := m.pool.Get().(*macState)
	s.h.Reset()
	s.h.Write(msg) // a hash.Hash never fails
	s.buf = s.h.Sum(s.buf[:0])
	copy(out[:], s.buf)
	m.pool.Put(s)
}

// ParseKeyRing reads a key file: one "ID BASE64SECRET" a line, the first of
// which signs; empty lines and lines that start with # are skipped. Messages
// never contain secrets.
func ParseKeyRing(data []byte) (*KeyRing, error) {
	var keys []Key
	sc := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, enc, ok := strings.Cut(line, " ")
		if !ok {
			return nil, fmt.Errorf("%w: line %d of the key file is not \"ID BASE64SECRET\"", ErrKey, n)
		}
		secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(enc))
		if err != nil {
			return nil, fmt.Errorf("%w: line %d of the key file: the secret is not base64", ErrKey, n)
		}
		keys = append(keys, Key{ID: id, Secret: secret})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%w: read the key file: %w", ErrKey, err)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: the key file has no keys", ErrKey)
	}
	return NewKeyRing(keys[0], keys[1:]...)
}

// OpenKeyFile reads the key file at path, or makes one with a fresh key, mode
// 0600, if there is none. A file that others may read is refused. Two processes
// that start together end up with the same key.
func OpenKeyFile(path string) (*KeyRing, error) {
	data, err := readKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKeyFile(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("governance: create key file %s: %w", path, err)
		}
		data, err = readKeyFile(path)
	}
	if err != nil {
		return nil, err
	}
	ring, err := ParseKeyRing(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return ring, nil
}

func readKeyFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("governance: key file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s may be read by others (mode %#o); chmod 600 it", ErrKey, path, info.Mode().Perm())
	}
	if info.Size() > 64<<10 {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrKey, path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("governance: key file: %w", err)
	}
	return data, nil
}

// createKeyFile writes a whole file under another name, made durable, and links
// it, so that a reader never sees half a key and a later start never a lost one.
func createKeyFile(path string) (err error) {
	key, err := NewKey("k1")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = fmt.Fprintf(f, "# Stokehold stamp keys: ID SECRET, the first signs. Keep this file secret.\n%s %s\n", key.ID, base64.StdEncoding.EncodeToString(key.Secret))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
