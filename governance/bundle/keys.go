package bundle

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Limits of key files.
const (
	maxKeyFile = 64 << 10
	maxKeys    = 64 // trusted at a time
)

var keyName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9._@]{0,61}[a-z0-9])?$`)

// keyID is how messages and manifests name a key: its name and the hash that a
// note's signature carries.
func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// SigningKey signs bundles. Printing it in any way shows its id alone.
type SigningKey struct {
	signer   note.Signer
	verifier note.Verifier
	secret   string
	public   string
}

// NewSigningKey makes an Ed25519 key. The name, 1 to 63 of a-z, 0-9 and -._@, is
// for people; a name may have several keys.
func NewSigningKey(name string) (*SigningKey, error) {
	if !keyName.MatchString(name) {
		return nil, fmt.Errorf("%w: name %.80q: use 1 to 63 of a-z, 0-9 and -._@", ErrKey, name)
	}
	secret, _, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return parseSigningKey(secret)
}

func parseSigningKey(secret string) (*SigningKey, error) {
	signer, err := note.NewSigner(secret)
	if err != nil {
		return nil, fmt.Errorf("%w: not a signing key", ErrKey) // the cause may hold it
	}
	public, err := publicKey(secret)
	if err != nil {
		return nil, err
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return &SigningKey{signer: signer, verifier: verifier, secret: secret, public: public}, nil
}

// publicKey derives the public half of an encoded signing key.
func publicKey(secret string) (string, error) {
	parts := strings.SplitN(secret, "+", 5)
	raw, err := base64.StdEncoding.DecodeString(parts[len(parts)-1])
	if err != nil || len(parts) != 5 || len(raw) != 1+ed25519.SeedSize {
		return "", fmt.Errorf("%w: not an Ed25519 signing key", ErrKey)
	}
	pub, _ := ed25519.NewKeyFromSeed(raw[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(parts[2], pub)
}

// ID returns the key's id.
func (k *SigningKey) ID() string { return keyID(k.signer.Name(), k.signer.KeyHash()) }

// Public returns the line that makes others trust the key.
func (k *SigningKey) Public() string { return k.public }

// String hides the secret.
func (k *SigningKey) String() string { return "policy signing key " + k.ID() }

// GoString hides the secret.
func (k *SigningKey) GoString() string { return k.String() }

// LogValue hides the secret.
func (k *SigningKey) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Write stores the key at path, mode 0600. A file that is there is an error that
// wraps fs.ErrExist: a signing key is not overwritten.
func (k *SigningKey) Write(path string) error {
	text := "# Signs Stokehold policy bundles. Keep this file secret.\n" + k.secret + "\n"
	if err := writeNew(path, []byte(text)); err != nil {
		return fmt.Errorf("write signing key %s: %w", path, err)
	}
	return nil
}

// ReadSigningKey reads a key that Write stored. A file that others may read is
// refused.
func ReadSigningKey(path string) (*SigningKey, error) {
	lines, err := readKeyFile(path, 0o077)
	if err != nil {
		return nil, err
	}
	if len(lines) != 1 {
		return nil, fmt.Errorf("%w: %s has %d keys; want one", ErrKey, path, len(lines))
	}
	k, err := parseSigningKey(lines[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// OpenSigningKey reads the key at path, or makes one there. Two processes that
// start together end up with the same key.
func OpenSigningKey(path, name string) (*SigningKey, error) {
	k, err := ReadSigningKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k, err = NewSigningKey(name); err != nil {
		return nil, err
	}
	if err := k.Write(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return ReadSigningKey(path)
}

// Trust is the keys whose bundles a process takes, and how many of them must
// have signed one. Immutable. The zero value trusts nobody.
//
// To rotate a key, add the new one's line to the list of every process, sign with
// the new one from then on, then take the old one's line out. A key that was
// lost to others is taken out at once; what it signed is then refused.
type Trust struct {
	keys   []note.Verifier
	quorum int
}

// NewTrust returns the trust in keys given as SigningKey.Public gives them. quorum
// is how many must have signed; 0 means 1.
func NewTrust(quorum int, keys ...string) (*Trust, error) {
	quorum = cmp.Or(quorum, 1)
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("%w: %d trusted keys; the limit is %d", ErrKey, len(keys), maxKeys)
	}
	if quorum < 1 || quorum > max(len(keys), 1) {
		return nil, fmt.Errorf("%w: a quorum of %d among %d keys", ErrKey, quorum, len(keys))
	}
	t := &Trust{quorum: quorum}
	for _, k := range keys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return nil, fmt.Errorf("%w: %.40q is no public key of 'stokehold policy keygen': %w", ErrKey, k, err)
		}
		if slices.ContainsFunc(t.keys, func(o note.Verifier) bool { return o.Name() == v.Name() && o.KeyHash() == v.KeyHash() }) {
			return nil, fmt.Errorf("%w: key %s is there twice", ErrKey, keyID(v.Name(), v.KeyHash()))
		}
		t.keys = append(t.keys, v)
	}
	return t, nil
}

// ParseTrust reads a list of trusted keys: one a line, empty lines and those
// that start with # skipped, and at most one line "quorum N".
func ParseTrust(data []byte) (*Trust, error) {
	lines, err := keyLines(data)
	if err != nil {
		return nil, err
	}
	quorum := 0
	keys := slices.DeleteFunc(lines, func(l string) bool {
		n, ok := strings.CutPrefix(l, "quorum ")
		if !ok {
			return false
		}
		if q, perr := strconv.Atoi(n); perr != nil || q < 1 || quorum != 0 {
			err = fmt.Errorf("%w: %.40q: want one line such as quorum 2", ErrKey, l)
		} else {
			quorum = q
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	return NewTrust(quorum, keys...)
}

// Single returns the trust in the same keys with a quorum of one, for those who
// add a signature.
func (t *Trust) Single() *Trust { return &Trust{keys: t.keys, quorum: 1} }

// Keys returns the ids of the trusted keys.
func (t *Trust) Keys() []string {
	var ids []string
	for _, k := range t.keys {
		ids = append(ids, keyID(k.Name(), k.KeyHash()))
	}
	return ids
}

// TrustSource says whom to trust at the moment. It is asked for each new bundle.
type TrustSource func() (*Trust, error)

// Trusting returns a TrustSource that never changes.
func Trusting(t *Trust) TrustSource { return func() (*Trust, error) { return t, nil } }

// TrustFile returns a TrustSource that reads a list of trusted keys each time, so
// that an edited list needs no restart. A file that others may write is refused.
func TrustFile(path string) TrustSource {
	return func() (*Trust, error) {
		data, err := readKeyBytes(path, 0o022)
		if err != nil {
			return nil, err
		}
		t, err := ParseTrust(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return t, nil
	}
}

// WriteTrust stores a list of trusted keys at path, unless there is a file, which
// is then an error that wraps fs.ErrExist.
func WriteTrust(path string, keys ...string) error {
	text := "# Whose policy bundles are taken: one key a line; 'quorum N' asks for N signatures.\n" + strings.Join(keys, "\n") + "\n"
	if err := writeNew(path, []byte(text)); err != nil {
		return fmt.Errorf("write trusted keys %s: %w", path, err)
	}
	return nil
}

func readKeyFile(path string, forbidden fs.FileMode) ([]string, error) {
	data, err := readKeyBytes(path, forbidden)
	if err != nil {
		return nil, err
	}
	return keyLines(data)
}

func readKeyBytes(path string, forbidden fs.FileMode) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("policy keys: %w", err)
	}
	if bad := info.Mode().Perm() & forbidden; bad != 0 {
		what, mode := "written", "go-w"
		if forbidden&0o044 != 0 {
			what, mode = "read", "600"
		}
		return nil, fmt.Errorf("%w: %s may be %s by others (mode %#o): chmod %s it", ErrKey, path, what, info.Mode().Perm(), mode)
	}
	if info.Size() > maxKeyFile {
		return nil, fmt.Errorf("%w: %s has %d bytes; the limit is %d", ErrKey, path, info.Size(), maxKeyFile)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("policy keys: %w", err)
	}
	return data, nil
}

func keyLines(data []byte) ([]string, error) {
	var out []string
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		if l := strings.TrimSpace(sc.Text()); l != "" && !strings.HasPrefix(l, "#") {
			out = append(out, l)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKey, err)
	}
	return out, nil
}

// writeNew writes a whole file, mode 0600, made durable, that must not be there
// yet.
func writeNew(path string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// replace writes a whole file, mode 0600, made durable, in place of any there is.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
