package arrowio

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// ErrURI means: a location's URI is malformed or of another scheme.
var ErrURI = errors.New("bad location URI")

// SharedURI says where in which arena a frame lies. It is not a pointer: the
// arena's owner checks it against the slot's generation on every use.
type SharedURI struct {
	Arena      string // arena id, lower-case hexadecimal
	Offset     int64  // bytes from the arena's start
	Length     int64  // bytes
	Generation uint64 // of the slot, so that a reused slot is told apart
}

// String formats "shm://ARENA/OFFSET+LENGTH.GENERATION", numbers in decimal.
func (u SharedURI) String() string {
	return fmt.Sprintf("shm://%s/%d+%d.%d", u.Arena, u.Offset, u.Length, u.Generation)
}

// ParseSharedURI parses what SharedURI.String formats, and nothing else: each
// location has one spelling. The error wraps ErrURI.
func ParseSharedURI(s string) (SharedURI, error) {
	var u SharedURI
	bad := func(why string) (SharedURI, error) {
		return SharedURI{}, fmt.Errorf("%w: %q: %s; want shm://ARENA/OFFSET+LENGTH.GENERATION", ErrURI, clip(s), why)
	}
	rest, ok := strings.CutPrefix(s, "shm://")
	if !ok {
		return bad("not shm://")
	}
	arena, slot, ok := strings.Cut(rest, "/")
	if !ok {
		return bad("no slot")
	}
	if arena == "" || len(arena) > 64 || strings.Trim(arena, "0123456789abcdef") != "" {
		return bad("arena id is not lower-case hexadecimal of at most 64 digits")
	}
	offset, rest, ok := strings.Cut(slot, "+")
	if !ok {
		return bad("no length")
	}
	length, generation, ok := strings.Cut(rest, ".")
	if !ok {
		return bad("no generation")
	}
	var err error
	u.Arena = arena
	if u.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil || u.Offset < 0 {
		return bad("offset")
	}
	if u.Length, err = strconv.ParseInt(length, 10, 64); err != nil || u.Length <= 0 {
		return bad("length")
	}
	if u.Offset+u.Length < 0 {
		return bad("offset plus length overflows")
	}
	if u.Generation, err = strconv.ParseUint(generation, 10, 64); err != nil {
		return bad("generation")
	}
	if u.String() != s {
		return bad("not the canonical spelling")
	}
	return u, nil
}

// FileURI formats an absolute path as "file:///...".
func FileURI(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("%w: path %q is not absolute", ErrURI, clip(path))
	}
	return (&url.URL{Scheme: "file", Path: filepath.Clean(path)}).String(), nil
}

// ParseFileURI returns the absolute, cleaned path of a "file:///..." URI. The
// error wraps ErrURI.
func ParseFileURI(s string) (string, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return "", fmt.Errorf("%w: %q is not a URI", ErrURI, clip(s))
	case u.Scheme != "file" || u.Host != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return "", fmt.Errorf("%w: %q: want file:///PATH", ErrURI, clip(s))
	case !filepath.IsAbs(u.Path) || strings.ContainsRune(u.Path, 0) || filepath.Clean(u.Path) != u.Path:
		return "", fmt.Errorf("%w: %q: want an absolute path without . or .. elements", ErrURI, clip(s))
	}
	return u.Path, nil
}

// S3URI formats "s3://BUCKET/KEY".
func S3URI(bucket, key string) string {
	return (&url.URL{Scheme: "s3", Host: bucket, Path: "/" + key}).String()
}

// ParseS3URI returns bucket and key of an "s3://BUCKET/KEY" URI. The error wraps
// ErrURI.
func ParseS3URI(s string) (bucket, key string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", "", fmt.Errorf("%w: %q is not a URI", ErrURI, clip(s))
	}
	key = strings.TrimPrefix(u.Path, "/")
	if u.Scheme != "s3" || u.Host == "" || key == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", "", fmt.Errorf("%w: %q: want s3://BUCKET/KEY", ErrURI, clip(s))
	}
	return u.Host, key, nil
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
