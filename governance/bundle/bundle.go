package bundle

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance"
)

// Bundle is a signed policy set. Immutable.
type Bundle struct {
	Manifest
	// Signers are the ids of the trusted keys that signed it.
	Signers []string

	sources []governance.Source
	raw     []byte
	sigs    []note.Signature
}

// Draft is what a person decides of a new bundle.
type Draft struct {
	Name     string   // default "default"
	Position Position // Version is required
	Created  time.Time
	Author   string
	Reason   string
	Default  events.Action // "": allow
	Types    governance.TypeSource
	Sources  []governance.Source
}

// DefaultName is the name of a bundle that nobody named.
const DefaultName = "default"

// Create compiles the policies and signs them. What does not load is not
// signed: the error is then a *governance.LoadError.
func Create(d Draft, keys ...*SigningKey) (*Bundle, error) {
	if len(keys) == 0 || slices.Contains(keys, nil) {
		return nil, fmt.Errorf("%w: no key to sign with", ErrKey)
	}
	set, err := governance.Load(governance.Options{Types: d.Types, Default: d.Default}, d.Sources...)
	if err != nil {
		return nil, err
	}
	m := Manifest{
		Name: cmp.Or(d.Name, DefaultName), Position: d.Position, Created: d.Created.UTC().Truncate(time.Second),
		Author: d.Author, Reason: d.Reason, Default: set.Default(), Language: governance.Language, Digest: set.Digest(),
	}
	sources := slices.Clone(d.Sources)
	for i := range sources {
		sources[i].Name = cleanName(sources[i].Name)
	}
	slices.SortStableFunc(sources, func(a, b governance.Source) int { return strings.Compare(a.Name, b.Name) })
	for i, s := range sources {
		if i > 0 && sources[i-1].Name == s.Name {
			return nil, &FormatError{Msg: fmt.Sprintf("two files are named %s: rename one", s.Name)}
		}
		m.Files = append(m.Files, File{Name: s.Name, Size: len(s.Data), SHA256: sha256.Sum256(s.Data)})
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	b := &Bundle{Manifest: m, sources: sources}
	return b.sign(keys...)
}

// cleanName makes a path as it was given relative to nowhere, since a bundle
// tells nothing of the machine it was made on.
func cleanName(name string) string {
	name = path.Clean("/" + strings.ReplaceAll(name, "\\", "/"))
	return strings.TrimPrefix(name, "/")
}

// CoSign adds signatures, for a list of trusted keys that asks for several. The
// manifest stays as it is.
func (b *Bundle) CoSign(keys ...*SigningKey) (*Bundle, error) {
	c := *b
	return c.sign(keys...)
}

// sign writes the bundle with its signatures so far and those of keys.
func (b *Bundle) sign(keys ...*SigningKey) (*Bundle, error) {
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k.signer)
	}
	head, err := note.Sign(&note.Note{Text: b.text(), Sigs: b.sigs}, signers...)
	if err != nil {
		return nil, fmt.Errorf("policy bundle %s: sign: %w", b.Name, err)
	}
	var out bytes.Buffer
	out.Write(head)
	out.WriteString("\n")
	for _, s := range b.sources {
		out.WriteString(fileHead(s.Name))
		out.Write(s.Data)
	}
	var verifiers []note.Verifier
	for _, k := range keys {
		verifiers = append(verifiers, k.verifier)
	}
	// What was written is read again: a bundle that nobody can open is not given out.
	return Open(out.Bytes(), &Trust{keys: verifiers, quorum: 1})
}

// fileHead is the line before a file's content, for people who read a bundle.
func fileHead(name string) string { return "-- " + name + " --\n" }

// Open verifies a bundle's signatures, then reads it. The error wraps ErrFormat,
// ErrTooLarge, ErrSignature, ErrUntrusted or ErrContent. data is not kept.
func Open(data []byte, trust *Trust) (*Bundle, error) {
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes; the limit is %d", ErrTooLarge, len(data), MaxBytes)
	}
	head, content, err := split(data)
	if err != nil {
		return nil, err
	}
	n, err := openNote(head, trust)
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(n.Text)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Manifest: *m, raw: bytes.Clone(data), sigs: append(n.Sigs, n.UnverifiedSigs...)}
	for _, s := range n.Sigs {
		b.Signers = append(b.Signers, keyID(s.Name, s.Hash))
	}
	b.sources, err = readFiles(m.Files, content)
	return b, err
}

// split parts the signed manifest, which ends with the second empty line, from
// the files.
func split(data []byte) (head, content []byte, err error) {
	window := data[:min(len(data), maxManifest)]
	i := bytes.Index(window, []byte("\n\n"))
	j := -1
	if i >= 0 {
		j = bytes.Index(window[i+2:], []byte("\n\n"))
	}
	switch {
	case j >= 0:
		end := i + 2 + j + 1
		return data[:end], data[end+1:], nil
	case len(data) > maxManifest:
		return nil, nil, fmt.Errorf("%w: more than %d bytes before the files", ErrTooLarge, maxManifest)
	}
	return nil, nil, &FormatError{Msg: "no manifest, signatures and files, parted by empty lines: is this a bundle?"}
}

func openNote(head []byte, trust *Trust) (*note.Note, error) {
	if lines := bytes.Count(head, []byte("\n— ")); lines > maxSignature {
		return nil, fmt.Errorf("%w: %d signatures; the limit is %d", ErrTooLarge, lines, maxSignature)
	}
	if trust == nil {
		trust = &Trust{}
	}
	n, err := note.Open(head, note.VerifierList(trust.keys...))
	var bad *note.InvalidSignatureError
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &bad):
		return nil, fmt.Errorf("%w: by key %s: the manifest was altered after it was signed", ErrSignature, keyID(bad.Name, bad.Hash))
	case errors.As(err, &unverified):
		return nil, untrusted(trust, nil, unverified.Note.UnverifiedSigs)
	case err != nil:
		return nil, &FormatError{Msg: "not a signed note: " + err.Error()}
	case len(n.Sigs) < trust.quorum:
		return nil, untrusted(trust, n.Sigs, n.UnverifiedSigs)
	}
	return n, nil
}

func untrusted(t *Trust, good, unknown []note.Signature) error {
	name := func(sigs []note.Signature) string {
		var ids []string
		for _, s := range sigs {
			ids = append(ids, keyID(s.Name, s.Hash))
		}
		return cmp.Or(strings.Join(ids, ", "), "nobody")
	}
	var trusted []string
	for _, k := range t.keys {
		trusted = append(trusted, keyID(k.Name(), k.KeyHash()))
	}
	return fmt.Errorf("%w: %d of %d needed signature(s): signed by %s, of whom %s is trusted; the trusted keys are %s: sign with one of them, or add the signer's to the list",
		ErrUntrusted, len(good), max(t.quorum, 1), name(append(slices.Clone(good), unknown...)), name(good), cmp.Or(strings.Join(trusted, ", "), "none"))
}

// readFiles checks each file against the signed manifest.
func readFiles(files []File, content []byte) ([]governance.Source, error) {
	var out []governance.Source
	for _, f := range files {
		head := fileHead(f.Name)
		rest, ok := bytes.CutPrefix(content, []byte(head))
		if !ok || len(rest) < f.Size {
			return nil, fmt.Errorf("%w: file %s is cut short or not where it belongs", ErrContent, f.Name)
		}
		body := bytes.Clone(rest[:f.Size])
		if sha256.Sum256(body) != f.SHA256 {
			return nil, fmt.Errorf("%w: file %s is not the one that was signed", ErrContent, f.Name)
		}
		out = append(out, governance.Source{Name: f.Name, Data: body})
		content = rest[f.Size:]
	}
	if len(content) > 0 {
		return nil, fmt.Errorf("%w: %d bytes after the last file", ErrContent, len(content))
	}
	return out, nil
}

// Bytes returns the bundle's text; a copy.
func (b *Bundle) Bytes() []byte { return bytes.Clone(b.raw) }

// Sources returns the policy files, for messages named "BUNDLE@VERSION:FILE".
func (b *Bundle) Sources() []governance.Source {
	out := slices.Clone(b.sources)
	for i := range out {
		out[i].Name = fmt.Sprintf("%s@%d:%s", b.Name, b.Position.Version, out[i].Name)
	}
	return out
}

// Options returns what the bundle's files are to be loaded with.
func (b *Bundle) Options(types governance.TypeSource) governance.Options {
	return governance.Options{Types: types, Default: b.Default}
}

// Load compiles the policies for event data of the given types and holds the
// result to the digest of the manifest, unless that is of another version of the
// language: the signature then speaks for the files, and every process compiles
// them to the set that its release makes of them.
func (b *Bundle) Load(ctx context.Context, types governance.TypeSource) (*governance.PolicySet, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	set, err := governance.Load(b.Options(types), b.Sources()...)
	if err != nil {
		return nil, err
	}
	if b.Language == governance.Language && set.Digest() != b.Digest {
		return nil, fmt.Errorf("%w: bundle %s version %s names %s and its files are %s", ErrDigest, b.Name, b.Position, b.Digest, set.Digest())
	}
	return set, nil
}

// fingerprint is the hex SHA-256 of the manifest.
func (b *Bundle) fingerprint() string {
	sum := sha256.Sum256([]byte(b.text()))
	return hex.EncodeToString(sum[:])
}

// Draft returns a draft of the same policies, for a bundle of another position.
func (b *Bundle) Draft(types governance.TypeSource) Draft {
	return Draft{Name: b.Name, Author: b.Author, Default: b.Default, Types: types, Sources: slices.Clone(b.sources)}
}
