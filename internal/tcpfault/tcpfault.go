// Package tcpfault is a TCP proxy for tests that hurts connections in the middle of
// what a server answers: it stalls them, drips bytes through them, or resets them.
package tcpfault

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Kind is what happens to a connection.
type Kind int

// The kinds. Stall and Drip last until the client closes the connection.
const (
	Stall Kind = iota // no more bytes come
	Drip              // one byte comes each 10 ms
	Reset             // it is reset
)

// drip is the time between two bytes.
const drip = 10 * time.Millisecond

// Proxy stands in front of a server. Safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	running  sync.WaitGroup

	mu    sync.Mutex
	armed []fault
	conns map[net.Conn]bool
	hurt  int // connections that a fault has befallen
	over  int // of them, those that have ended
}

type fault struct {
	kind  Kind
	after int64
}

// Start forwards connections to target, a host and port, until the test ends.
func Start(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.running.Go(p.accept)
	tb.Cleanup(func() {
		_ = l.Close() // ends accept
		p.mu.Lock()
		for c := range p.conns {
			_ = c.Close() // ends its copying
		}
		p.mu.Unlock()
		p.running.Wait()
	})
	return p
}

// Addr is the host and port of the proxy.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Next has the connection that brings the next bytes of the server hurt once that
// many have passed.
func (p *Proxy) Next(kind Kind, after int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed = append(p.armed, fault{kind, after})
}

// Hurt is how many connections a fault has befallen, and how many of them have ended.
func (p *Proxy) Hurt() (hurt, ended int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hurt, p.over
}

// Open is how many connections there are now.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conns[client] = true
		p.mu.Unlock()
		p.running.Go(func() {
			p.forward(client)
			_ = client.Close() // a second time is no harm
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, client)
		})
	}
}

// forward copies both ways until either side ends.
func (p *Proxy) forward(client net.Conn) {
	server, err := net.Dial("tcp", p.target) //nolint:noctx // ends with the test's server
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	left := make(chan struct{}) // closed when the client has gone
	p.running.Go(func() {
		defer close(left)
		_, _ = io.Copy(server, client) // however it ends, it has ended
		_ = server.Close()
	})
	p.answers(client, server, left)
	_ = client.Close()
	<-left
}

func (p *Proxy) answers(client, server net.Conn, left <-chan struct{}) {
	buf := make([]byte, 32<<10)
	var now *fault
	for {
		n, err := server.Read(buf)
		if now == nil && n > 0 {
			now = p.take()
		}
		if now != nil && int64(n) > now.after {
			p.hurtBy(now.kind, client, buf[:n], now.after, left)
			return
		}
		if _, writeErr := client.Write(buf[:n]); err != nil || writeErr != nil {
			return
		}
		if now != nil {
			now.after -= int64(n)
		}
	}
}

func (p *Proxy) take() *fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.armed) == 0 {
		return nil
	}
	f := p.armed[0]
	p.armed = p.armed[1:]
	return &f
}

// hurtBy passes what may still pass of data and then lets it happen.
func (p *Proxy) hurtBy(kind Kind, client net.Conn, data []byte, after int64, left <-chan struct{}) {
	p.mu.Lock()
	p.hurt++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.over++
	}()
	if _, err := client.Write(data[:after]); err != nil {
		return
	}
	switch kind {
	case Stall:
		<-left
	case Drip:
		for i := range data[after:] {
			select {
			case <-left:
				return
			case <-time.After(drip): // the fault itself
			}
			if _, err := client.Write(data[after:][i : i+1]); err != nil {
				return
			}
		}
		<-left
	case Reset:
		if tcp, ok := client.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it is closed all the same
		}
	}
}
