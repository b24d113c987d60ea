package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"

	"github.com/stokehold/stokehold"
)

const hidden = "[redacted]"

// Secret is a string that no formatting verb, encoder or logger shows.
type Secret = stokehold.Secret

// Endpoint is a URL or host:port. It may hold a user and password, which are
// shown only by Reveal.
type Endpoint string

// Reveal returns the endpoint with its credentials.
func (e Endpoint) Reveal() string { return string(e) }

func (e Endpoint) String() string {
	// A list of URLs is one NATS connection's servers. A comma that no scheme
	// follows may be part of a password.
	var servers []string
	for p := range strings.SplitSeq(string(e), ",") {
		if len(servers) > 0 && !strings.Contains(p, "://") {
			servers[len(servers)-1] += "," + p
			continue
		}
		servers = append(servers, p)
	}
	for i, p := range servers {
		if path, _, ok := strings.Cut(p, "?"); ok {
			p = path + "?" + hidden
		}
		if at := strings.LastIndex(p, "@"); at >= 0 {
			scheme := ""
			if j := strings.Index(p, "://"); j >= 0 && j < at {
				scheme = p[:j+3]
			}
			p = scheme + hidden + p[at:]
		} else if strings.Contains(string(e), "@") && strings.HasSuffix(p, "?"+hidden) {
			p = hidden // a password with a question mark in it
		}
		servers[i] = p
	}
	return strings.Join(servers, ",")
}

// Format covers every verb, see Secret.
func (e Endpoint) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(e.String())) }

// MarshalText gives what String does.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// LogValue gives what String does.
func (e Endpoint) LogValue() slog.Value { return slog.StringValue(e.String()) }

var errEndpoint = errors.New("want a URL or host:port")

// HostPort returns where to dial for the first server of e. defaultPort stands
// in for a missing port; "" takes the scheme's (80 or 443).
func (e Endpoint) HostPort(defaultPort string) (string, error) {
	s, _, _ := strings.Cut(string(e), ",")
	if !strings.Contains(s, "://") {
		s = "tcp://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		// The parse error would show the whole URL with its password.
		return "", errEndpoint
	}
	port := u.Port()
	switch {
	case port != "":
	case defaultPort != "":
		port = defaultPort
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port), nil
}
