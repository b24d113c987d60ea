package handoff

import (
	"os"

	"github.com/stokehold/stokehold/arrowio/shm"
)

// NewConnWaiting is NewConn for messages without descriptors, with a say in where
// they are waited for: in Go's poller, as where there is one processor, or in the
// kernel.
func NewConnWaiting(f *os.File, poller bool) (*Conn, error) {
	return makeConn(f, func(Kind) int { return 0 }, poller)
}

// WithStep calls step at each point of the protocol at which a server may be
// killed.
func (c ServerConfig) WithStep(step func(point string)) ServerConfig {
	c.step = step
	return c
}

// DecodePeerMessage decodes a packet as each kind of message of the peers
// protocol, for the fuzz test and the vectors of its specification.
func DecodePeerMessage(b []byte) (any, error) {
	p, err := Decode(b)
	if err != nil {
		return nil, err
	}
	switch p.Kind {
	case kindHello:
		return decodeHello(p.Payload)
	case kindWelcome:
		return decodeWelcome(p.Payload)
	case kindLease:
		return decodeSlotName(p.Payload)
	case kindRelease:
		m, err := decodeRelease(p.Payload)
		for i := range m.len() {
			m.token(i)
		}
		return m, err
	case kindArena:
		return DecodeArenaGrant(p.Payload)
	case kindForget:
		return decodeID(p.Payload)
	case kindPing, kindPong, kindLeased:
		return decodeU64(p.Payload)
	case kindRefused, kindError:
		return decodeNotice(p.Payload)
	case kindStatus:
		m, err := decodePiece(p.Payload)
		if err != nil {
			return nil, err
		}
		return decodeStatus(m.json)
	default:
		return nil, Violation("no such kind")
	}
}

// Vectors are the messages that docs/HANDOFF.md prints.
func Vectors() (map[string][]byte, error) {
	id := [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	const token = 0x1122334455667788
	all := map[string][]byte{}
	for _, m := range []struct {
		name    string
		kind    Kind
		job     uint32
		payload []byte
	}{
		{"hello", kindHello, 0, hello{Version, 4242, flagFence}.append(nil)},
		{"welcome", kindWelcome, 0, welcome{Version, 4000, 1000, 3000, 256, 1 << 30}.append(nil)},
		{"lease", kindLease, 5, slotName{id, 4096, 1000, 3}.append(nil)},
		{"arena", kindArena, 0, ArenaGrant{id, 1 << 20}.Encode()},
		{"leased", kindLeased, 5, appendU64(nil, token)},
		{"refused", kindRefused, 5, notice{CodeGone, "dropped"}.append(nil)},
		{"release", kindRelease, 0, appendRelease(nil, []uint64{token, 1})},
		{"forget", kindForget, 0, id[:]},
		{"ping", kindPing, 0, appendU64(nil, 1)},
		{"pong", kindPong, 0, appendU64(nil, 1)},
		{"inspect", kindInspect, 6, nil},
		{"status", kindStatus, 6, piece{0, 1, []byte(`{"pid":1}`)}.append(nil)},
		{"leave", kindLeave, 0, nil},
		{"goodbye", kindGoodbye, 0, nil},
		{"error", kindError, 0, notice{CodeStalled, "silent"}.append(nil)},
	} {
		b, err := Append(nil, m.kind, m.job, m.payload)
		if err != nil {
			return nil, err
		}
		all[m.name] = b
	}
	return all, nil
}

// The packets that hand-driven peers of the tests send.

func HelloPacket(version, pid uint32, fence bool) []byte {
	m := hello{version: version, pid: pid}
	if fence {
		m.flags = flagFence
	}
	b, _ := Append(nil, kindHello, 0, m.append(nil))
	return b
}

func LeasePacket(job uint32, u shm.Handle) []byte {
	id, _ := ArenaID(u.Arena)
	b, _ := Append(nil, kindLease, job, slotName{id, u.Offset, u.Length, u.Generation}.append(nil))
	return b
}

func ReleasePacket(tokens ...uint64) []byte {
	b, _ := Append(nil, kindRelease, 0, appendRelease(nil, tokens))
	return b
}

func WelcomePacket(leases uint32) []byte {
	b, _ := Append(nil, kindWelcome, 0, welcome{Version, 1, 1000, 3000, leases, 1 << 30}.append(nil))
	return b
}

func ArenaPacket(id [16]byte, size int64) []byte {
	b, _ := Append(nil, kindArena, 0, ArenaGrant{id, size}.Encode())
	return b
}

func LeasedPacket(job uint32, token uint64) []byte {
	b, _ := Append(nil, kindLeased, job, appendU64(nil, token))
	return b
}

// Packet kinds as numbers.
const (
	KindLease, KindPong, KindGoodbye, KindInspect            = kindLease, kindPong, kindGoodbye, kindInspect
	KindWelcome, KindArena, KindLeased, KindRefused          = kindWelcome, kindArena, kindLeased, kindRefused
	KindPing, KindError, KindStatus, KindForget, KindRelease = kindPing, kindError, kindStatus, kindForget, kindRelease
)

// PeerCarries is the rule of descriptors of the peers protocol.
var PeerCarries = peerCarries

// Token reads the token of a leased message.
func Token(p Packet) (uint64, error) { return decodeU64(p.Payload) }

// ErrorText reads a refused or error message.
func ErrorText(p Packet) (Code, string, error) {
	m, err := decodeNotice(p.Payload)
	return m.code, m.text, err
}

// Parked reports whether Keep waits for the end of a waiter's turn.
func (in *Inbox) Parked() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.parked
}
