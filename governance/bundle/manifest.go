package bundle

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stokehold/stokehold/events"
)

// Limits of a bundle.
const (
	MaxBytes     = 8 << 20   // of the whole text
	MaxFiles     = 1000      // policy files
	maxManifest  = 512 << 10 // bytes of manifest and signatures
	maxText      = 512       // bytes of author and reason
	maxFileName  = 256       // bytes
	maxSignature = 16        // signatures of one bundle
)

// format is the first line of every bundle.
const format = "stokehold.dev/bundle/v1"

// Position is the place of a bundle in the order of those of its name.
type Position struct {
	Epoch   uint64 // counts the forced roll-backs
	Version uint64 // 1 and up; rises within an epoch
}

// Compare returns -1, 0 or 1 as p is before, at or after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Version, q.Version))
}

// String returns the version, and the epoch unless that is 0.
func (p Position) String() string {
	if p.Epoch == 0 {
		return strconv.FormatUint(p.Version, 10)
	}
	return fmt.Sprintf("%d (epoch %d)", p.Version, p.Epoch)
}

// Manifest is what the signatures of a bundle cover.
type Manifest struct {
	Name     string        // 1 to 63 of a-z, 0-9 and -; a deployment may have several
	Position Position      // in the order of the bundles of that name
	Created  time.Time     // UTC, whole seconds
	Author   string        // who made it, for people; one line, up to 512 bytes
	Reason   string        // why; required of a bundle that begins an epoch
	Default  events.Action // for events that no policy matches: Allow or Deny
	Language int           // version of the policies' language that Digest is of
	Digest   string        // of the policy set; see governance.PolicySet.Digest
	Files    []File        // by name
}

// File is one policy file of a bundle.
type File struct {
	Name   string // slash-separated, relative
	Size   int
	SHA256 [sha256.Size]byte
}

var (
	nameRule   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	digestRule = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// check holds what New filled in, or Open read, to the rules.
func (m *Manifest) check() error {
	bad := func(format string, args ...any) error {
		return &FormatError{Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case !nameRule.MatchString(m.Name):
		return bad("name %.80q: use 1 to 63 of a-z, 0-9 and -", m.Name)
	case m.Position.Version == 0:
		return bad("version 0: versions begin at 1")
	case m.Created.IsZero() || m.Created.Year() > 9999 || !m.Created.Equal(m.Created.UTC().Truncate(time.Second)):
		return bad("created %s: want a time in whole seconds", m.Created)
	case !oneLine(m.Author) || m.Author == "":
		return bad("author: want one line of 1 to %d bytes", maxText)
	case !oneLine(m.Reason):
		return bad("reason: want one line of up to %d bytes", maxText)
	case m.Position.Epoch > 0 && m.Reason == "":
		return bad("reason: a bundle after a roll-back says why it was rolled back")
	case m.Default != events.Allow && m.Default != events.Deny:
		return bad("default %.80q: want allow or deny", m.Default)
	case m.Language < 1:
		return bad("language %d: want 1 or more", m.Language)
	case !digestRule.MatchString(m.Digest):
		return bad("digest %.80q: want sha256: and 64 hexadecimal digits", m.Digest)
	case len(m.Files) == 0:
		return bad("no files")
	case len(m.Files) > MaxFiles:
		return fmt.Errorf("%w: %d files; the limit is %d", ErrTooLarge, len(m.Files), MaxFiles)
	}
	for i, f := range m.Files {
		if !fs.ValidPath(f.Name) || f.Name == "." || len(f.Name) > maxFileName || !oneLine(f.Name) {
			return bad("file name %.80q: want a relative path of one line", f.Name)
		}
		if i > 0 && m.Files[i-1].Name >= f.Name {
			return bad("file %q: files are sorted by name, each once", f.Name)
		}
	}
	return nil
}

// oneLine reports whether s is short, and prints as one line that a terminal
// shows as it is.
func oneLine(s string) bool {
	return len(s) <= maxText && utf8.ValidString(s) && strings.TrimSpace(s) == s &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) })
}

// text is the manifest as it is signed. Two manifests have one text only if they
// are equal.
func (m *Manifest) text() string {
	var b strings.Builder
	b.WriteString(format + "\n")
	for _, l := range m.lines() {
		if l.value != "" || l.required {
			fmt.Fprintf(&b, "%s %s\n", l.key, l.value)
		}
	}
	for _, f := range m.Files {
		fmt.Fprintf(&b, "file %x %d %s\n", f.SHA256, f.Size, f.Name)
	}
	return b.String()
}

type line struct {
	key, value string
	required   bool
}

func (m *Manifest) lines() []line {
	return []line{
		{"name", m.Name, true},
		{"epoch", strconv.FormatUint(m.Position.Epoch, 10), true},
		{"version", strconv.FormatUint(m.Position.Version, 10), true},
		{"created", m.Created.UTC().Format(time.RFC3339), true},
		{"author", m.Author, true},
		{"reason", m.Reason, false},
		{"default", string(m.Default), true},
		{"language", strconv.Itoa(m.Language), true},
		{"digest", m.Digest, true},
	}
}

// parseManifest reads the text of a manifest. Only what text would write is
// accepted, so that a manifest has one spelling.
func parseManifest(text string) (*Manifest, error) {
	m := &Manifest{}
	n := 0
	seen := map[string]bool{}
	for l := range strings.Lines(text) {
		n++
		l = strings.TrimSuffix(l, "\n")
		fault := func(format string, args ...any) error {
			return &FormatError{Line: n, Msg: fmt.Sprintf(format, args...)}
		}
		if n == 1 {
			if l != format {
				return nil, fault("want %q, not %.80q: is this a bundle, and made for this release?", format, l)
			}
			continue
		}
		key, value, ok := strings.Cut(l, " ")
		if !ok {
			return nil, fault("want a key, a space and a value, not %.80q", l)
		}
		if key != "file" && seen[key] {
			return nil, fault("%s is there twice", key)
		}
		seen[key] = true
		known, err := m.set(key, value)
		if !known {
			return nil, fault("unknown field %.80q: a later release made this bundle", key)
		}
		if err != nil {
			return nil, fault("%s: %v", key, err)
		}
		if len(m.Files) > MaxFiles {
			return nil, fmt.Errorf("%w: more than %d files", ErrTooLarge, MaxFiles)
		}
	}
	for _, l := range m.lines() {
		if l.required && !seen[l.key] {
			return nil, &FormatError{Msg: "missing field " + strconv.Quote(l.key)}
		}
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if m.text() != text {
		return nil, &FormatError{Msg: "the manifest is not in its one spelling: fields in order, numbers without zeros in front, the time in UTC"}
	}
	return m, nil
}

// set reads one field.
func (m *Manifest) set(key, value string) (known bool, err error) {
	switch key {
	case "name":
		m.Name = value
	case "epoch":
		m.Position.Epoch, err = strconv.ParseUint(value, 10, 64)
	case "version":
		m.Position.Version, err = strconv.ParseUint(value, 10, 64)
	case "created":
		m.Created, err = time.Parse(time.RFC3339, value)
	case "author":
		m.Author = value
	case "reason":
		m.Reason = value
	case "default":
		m.Default = events.Action(value)
	case "language":
		m.Language, err = strconv.Atoi(value)
	case "digest":
		m.Digest = value
	case "file":
		var f File
		if f, err = parseFile(value); err == nil {
			m.Files = append(m.Files, f)
		}
	default:
		return false, nil
	}
	return true, err
}

func parseFile(value string) (File, error) {
	sum, rest, _ := strings.Cut(value, " ")
	size, name, ok := strings.Cut(rest, " ")
	n, err := strconv.ParseInt(size, 10, 32)
	raw, hexErr := hex.DecodeString(sum)
	if !ok || err != nil || n < 0 || hexErr != nil || len(raw) != sha256.Size {
		return File{}, fmt.Errorf("want SHA-256, size and name, not %.120q", value)
	}
	return File{Name: name, Size: int(n), SHA256: [sha256.Size]byte(raw)}, nil
}
