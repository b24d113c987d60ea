package arrowio

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
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

// FlightURI says on which host an Arrow Flight server gives out a batch. Which
// batch it is says the ref.
type FlightURI struct {
	Addr string // HOST:PORT; an IPv6 address in brackets
	TLS  bool
}

// String formats "grpc+tcp://HOST:PORT", or "grpc+tls://HOST:PORT" with TLS.
func (u FlightURI) String() string {
	if u.TLS {
		return "grpc+tls://" + u.Addr
	}
	return "grpc+tcp://" + u.Addr
}

// IsFlightURI reports whether s has one of the schemes of a FlightURI.
func IsFlightURI(s string) bool {
	return strings.HasPrefix(s, "grpc+tcp://") || strings.HasPrefix(s, "grpc+tls://")
}

// ParseFlightURI parses what FlightURI.String formats, and nothing else: no
// credentials, no path, a port always, lower-case names and canonical addresses,
// so that each host has one spelling. The error wraps ErrURI.
func ParseFlightURI(s string) (FlightURI, error) {
	bad := func(why string) (FlightURI, error) {
		return FlightURI{}, fmt.Errorf("%w: %q: %s; want grpc+tcp://HOST:PORT or grpc+tls://HOST:PORT", ErrURI, clip(s), why)
	}
	addr, plain := strings.CutPrefix(s, "grpc+tcp://")
	if !plain {
		var ok bool
		if addr, ok = strings.CutPrefix(s, "grpc+tls://"); !ok {
			return bad("another scheme")
		}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return bad("no host and port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return bad("port")
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.Zone() != "" || ip.String() != host {
			return bad("not the canonical spelling of the address")
		}
	} else if !hostName(host) {
		return bad("host is neither an address nor a lower-case name")
	}
	if net.JoinHostPort(host, port) != addr {
		return bad("not the canonical spelling")
	}
	return FlightURI{Addr: addr, TLS: !plain}, nil
}

// hostName reports whether s could be a DNS name, in lower case.
func hostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	// "1.2.3" and "0127.0.0.1" are addresses to some programs and names to others.
	last := s[strings.LastIndexByte(s, '.')+1:]
	return strings.Trim(last, "0123456789") != ""
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
