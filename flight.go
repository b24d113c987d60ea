package stokehold

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/flight"
	"github.com/stokehold/stokehold/tiers"
)

func (f Flight) enabled() bool { return f != Flight{} }

func (f Flight) validate() []error {
	if !f.enabled() {
		return nil
	}
	var faults []error
	bad := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if (f.CertFile == "") != (f.KeyFile == "") {
		bad("Flight needs both a certificate and a key, or neither")
	}
	if f.Token != "" && len(f.Token) < 16 {
		bad("the Flight token is short enough to be guessed: make one of at least 16 random characters")
	}
	if f.Advertise != "" {
		if _, err := arrowio.ParseFlightURI(arrowio.FlightURI{Addr: f.Advertise}.String()); err != nil {
			bad("Flight.Advertise is not of the form HOST:PORT: %w", err)
		}
	}
	if f.Addr == "" {
		if f.Advertise != "" || f.CertFile != "" {
			bad("Flight.Advertise and a certificate are of use with Flight.Addr only")
		}
		return faults
	}
	host, _, err := net.SplitHostPort(f.Addr)
	if err != nil {
		bad("Flight.Addr %q is not of the form HOST:PORT", f.Addr)
	} else if ip, err := netip.ParseAddr(host); f.Advertise == "" && (host == "" || err == nil && ip.IsUnspecified()) {
		bad("Flight.Addr %q is every address of this host: say with Flight.Advertise at which one other hosts reach it", f.Addr)
	}
	return faults
}

// flightPeers is what openFlight leaves for the store and for serveFlight.
type flightPeers struct {
	resolver  arrowio.Resolver // nil: no other host is asked
	advertise string
	listener  net.Listener // nil: nothing is given out
	tls       *tls.Config  // of the server
}

func (p *flightPeers) close() error {
	if p.listener == nil {
		return nil
	}
	return p.listener.Close()
}

// openFlight makes the client for other hosts' batches and takes the address at
// which this one's are given out: the store writes it into refs.
func (a *App) openFlight(ctx context.Context) (*flightPeers, error) {
	f, p := a.cfg.Flight, &flightPeers{}
	if !f.enabled() {
		return p, nil
	}
	client := flight.Config{Token: flight.Token(f.Token.Reveal()), Insecure: f.Insecure}
	if f.CAFile != "" {
		pem, err := os.ReadFile(f.CAFile)
		if err != nil {
			return nil, fmt.Errorf("authority for Flight hosts: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("authority for Flight hosts: %s holds no PEM certificate", f.CAFile)
		}
		client.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
	}
	if f.Addr != "" {
		if f.CertFile != "" {
			pair, err := tls.LoadX509KeyPair(f.CertFile, f.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("certificate for Flight: %w", err)
			}
			p.tls = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
		}
		var err error
		if p.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", f.Addr); err != nil {
			return nil, fmt.Errorf("listen for Flight on %s: %w", f.Addr, err)
		}
		at := arrowio.FlightURI{Addr: f.Advertise, TLS: p.tls != nil}
		if at.Addr == "" {
			at.Addr = p.listener.Addr().String()
		}
		p.advertise = at.String()
		client.Self = []string{p.advertise}
	}
	c, err := flight.Dial(client)
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	a.onClose(func(context.Context) error { return c.Close() })
	p.resolver = c
	return p, nil
}

// serveFlight begins to give batches out.
func (a *App) serveFlight(p *flightPeers) error {
	if p.listener == nil {
		return nil
	}
	f := a.cfg.Flight
	// Not Connect's context, which may be one for connecting only.
	s, err := flight.Serve(context.Background(), flight.ServerConfig{
		Listener: p.listener, Source: flightSource{a.Store.Local()}, TLS: p.tls, Token: flight.Token(f.Token.Reveal()),
		Insecure: f.Insecure, Advertise: f.Advertise, Logger: a.cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("%w: set a Flight token, and a certificate beyond this machine", err)
	}
	a.Flight = s
	a.onClose(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, connectTimeout) // a reader elsewhere may take its time
		defer cancel()
		return s.Close(ctx)
	})
	a.cfg.Log.Info("batches are given out to other hosts", "uri", p.advertise)
	return nil
}

// flightSource is a store in the terms of package flight.
type flightSource struct{ tiers.Local }

func (s flightSource) Frame(ctx context.Context, ref arrowio.Ref) (flight.Frame, error) {
	b, digest, release, err := s.Local.Frame(ctx, ref.Dataset, ref.Sequence)
	return flight.Frame{Bytes: b, SHA256: digest, Release: release}, err
}

func (s flightSource) Describe(ctx context.Context, dataset string) (flight.Info, error) {
	h, err := s.Head(ctx, dataset)
	if errors.Is(err, tiers.ErrNotFound) || errors.Is(err, tiers.ErrName) {
		err = fmt.Errorf("%w: %w", arrowio.ErrGone, err)
	}
	return flight.Info{Fingerprint: h.Fingerprint, Next: h.Next, Rows: h.Rows, Sealed: h.Sealed}, err
}

var (
	_ flight.Framer    = flightSource{}
	_ flight.Describer = flightSource{}
)
