package proof

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// ErrKey means that a key or key file cannot be used.
var ErrKey = errors.New("unusable checkpoint key")

const (
	privatePrefix   = "PRIVATE+KEY+"
	maxKeys         = 32
	maxKeyFileBytes = 64 << 10
)

// Keys are the Ed25519 keys of one log's checkpoints: those that sign and those
// that are trusted, in the text forms of golang.org/x/mod/sumdb/note. All private
// keys sign, so that a rotation is: add the new one (Rotate), let those who verify
// add its public half, retire the old one (Retire), whose public half stays to
// verify what it signed. Immutable; safe for concurrent use.
type Keys struct {
	origin    string
	signers   []note.Signer
	known     note.Verifiers
	verifiers []string // public keys, in the order of the file
	private   []string
}

var _ note.Verifiers = (*Keys)(nil)

// NewKeys makes a fresh key for the log of that origin.
func NewKeys(origin string) (*Keys, error) {
	if !validOrigin(origin) {
		return nil, fmt.Errorf("%w: origin %q must be 1 to 128 printable characters without space and +", ErrKey, origin)
	}
	private, _, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return nil, fmt.Errorf("make a checkpoint key: %w", err)
	}
	return ParseKeys([]byte(private + "\n"))
}

// ParseKeys reads lines that are private keys (PRIVATE+KEY+NAME+HASH+BASE64) or
// public ones (NAME+HASH+BASE64), all of one name. Empty lines and those that
// begin with # are passed over. Errors wrap ErrKey and show no key.
func ParseKeys(data []byte) (*Keys, error) {
	k := &Keys{}
	var list []note.Verifier
	seen := map[string]bool{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		public := line
		if strings.HasPrefix(line, privatePrefix) {
			s, err := note.NewSigner(line)
			if err != nil {
				return nil, fmt.Errorf("%w: line %d: %w", ErrKey, n, err)
			}
			if public, err = publicOf(s, line); err != nil {
				return nil, fmt.Errorf("%w: line %d: %w", ErrKey, n, err)
			}
			k.signers, k.private = append(k.signers, s), append(k.private, line)
		}
		v, err := note.NewVerifier(public)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrKey, n, err)
		}
		if !validOrigin(v.Name()) || k.origin != "" && k.origin != v.Name() {
			return nil, fmt.Errorf("%w: line %d: the key is of log %q; all of a file must be of one", ErrKey, n, v.Name())
		}
		k.origin = v.Name()
		if seen[public] {
			continue
		}
		seen[public] = true
		list, k.verifiers = append(list, v), append(k.verifiers, public)
		if len(list) > maxKeys {
			return nil, fmt.Errorf("%w: more than %d keys", ErrKey, maxKeys)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrKey)
	}
	k.known = note.VerifierList(list...)
	return k, nil
}

// Origin names the log whose keys these are.
func (k *Keys) Origin() string { return k.origin }

// CanSign reports whether there is a private key.
func (k *Keys) CanSign() bool { return len(k.signers) > 0 }

// Public returns the public keys.
func (k *Keys) Public() []string { return append([]string(nil), k.verifiers...) }

// String lists the names of the keys: no key material.
func (k *Keys) String() string {
	names := make([]string, len(k.verifiers))
	for i, v := range k.verifiers {
		names[i] = strings.Join(strings.SplitN(v, "+", 3)[:2], "+")
	}
	return strings.Join(names, ", ")
}

// GoString is String: %#v must not print private keys.
func (k *Keys) GoString() string { return k.String() }

// Verifier implements note.Verifiers.
func (k *Keys) Verifier(name string, hash uint32) (note.Verifier, error) {
	return k.known.Verifier(name, hash)
}

// Rotate returns the keys with a fresh one that signs beside the present ones.
func (k *Keys) Rotate() (*Keys, error) {
	fresh, err := NewKeys(k.origin)
	if err != nil {
		return nil, err
	}
	return ParseKeys([]byte(fresh.private[0] + "\n" + k.file()))
}

// Retire returns the keys in which only the newest signs, the first of the file;
// the public halves of the others stay.
func (k *Keys) Retire() (*Keys, error) {
	if len(k.private) == 0 {
		return nil, fmt.Errorf("%w: there is no private key", ErrKey)
	}
	return ParseKeys([]byte(k.private[0] + "\n" + strings.Join(k.verifiers, "\n") + "\n"))
}

func (k *Keys) file() string {
	return strings.Join(append(append([]string(nil), k.private...), k.verifiers...), "\n") + "\n"
}

// ReadKeyFile reads a key file. One that holds a private key must not be readable
// by others than its owner. Errors wrap ErrKey or fs.ErrNotExist.
func ReadKeyFile(path string) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("checkpoint key file: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("checkpoint key file: %w", err)
	}
	if info.Size() > maxKeyFileBytes || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is no file of at most 64 KiB", ErrKey, path)
	}
	data := make([]byte, info.Size())
	if n, err := f.ReadAt(data, 0); n < len(data) {
		return nil, fmt.Errorf("checkpoint key file: %w", err)
	}
	k, err := ParseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if k.CanSign() && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%w: %s holds a private key and may be read by others (mode %#o); chmod 600 it", ErrKey, path, info.Mode().Perm())
	}
	return k, nil
}

// OpenKeyFile reads the key file at path, or makes one with a fresh key, mode 0600,
// if there is none. Two processes that start together end up with the same key.
func OpenKeyFile(path, origin string) (*Keys, error) {
	k, err := ReadKeyFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = NewKeys(origin); err != nil {
		return nil, err
	}
	err = k.write(path, os.Link)
	if errors.Is(err, fs.ErrExist) {
		return ReadKeyFile(path)
	}
	return k, err
}

// WriteKeyFile replaces the file at path, mode 0600.
func (k *Keys) WriteKeyFile(path string) error { return k.write(path, os.Rename) }

// write makes the file durable under another name first, so that no reader sees
// half a key.
func (k *Keys) write(path string, place func(old, path string) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write checkpoint key file: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if rerr := os.Remove(f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}()
	_, err = f.WriteString("# Ed25519 keys of the checkpoints of a decision log. Lines that begin with " + privatePrefix + " sign: keep them secret.\n" + k.file())
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := place(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// publicOf returns the public half of a private key that note has accepted.
func publicOf(s note.Signer, private string) (string, error) {
	parts := strings.SplitN(private, "+", 5) // base64 may hold further ones
	seed, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(seed) != 1+ed25519.SeedSize {
		return "", errors.New("no Ed25519 private key")
	}
	public, _ := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(s.Name(), public)
}
