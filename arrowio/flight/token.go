package flight

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
)

// Token is the secret that clients show and servers ask for. Printed, logged or
// encoded it is "[redacted]".
type Token string

const (
	redacted     = "[redacted]"
	tokenHeader  = "authorization"
	tokenPrefix  = "Bearer "
	minTokenSize = 16
	maxTokenSize = 4096
)

func (t Token) String() string {
	if t == "" {
		return ""
	}
	return redacted
}

// Format covers every verb: %x and %q of a string type would not call String.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(t.String())) }

// LogValue keeps log handlers from showing the value.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText keeps encoders, JSON's included, from showing the value.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// check reports a token that could be guessed, or that HTTP cannot carry.
func (t Token) check() error {
	if t == "" {
		return nil
	}
	if len(t) < minTokenSize || len(t) > maxTokenSize {
		return fmt.Errorf("token of %d characters: want %d to %d, from a random generator", len(t), minTokenSize, maxTokenSize)
	}
	for i := range len(t) {
		if t[i] <= ' ' || t[i] > '~' {
			return fmt.Errorf("token has a character at %d that is not printable ASCII", i)
		}
	}
	return nil
}

// equal compares in constant time, whatever the lengths are.
func (t Token) equal(shown string) bool {
	a, b := sha256.Sum256([]byte(t)), sha256.Sum256([]byte(shown))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// accepts reports whether one of the authorization headers shows the token.
func (t Token) accepts(headers []string) bool {
	if len(headers) != 1 {
		return false
	}
	shown, ok := strings.CutPrefix(headers[0], tokenPrefix)
	return ok && t.equal(shown)
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t Token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{tokenHeader: tokenPrefix + string(t)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials. Whether the
// token may travel in the clear is the client's decision per host, and made
// before.
func (t Token) RequireTransportSecurity() bool { return false }

// loopback reports whether HOST:PORT is of this machine only.
func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}
