package governance

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"
	cetypes "github.com/cloudevents/sdk-go/v2/types"

	"github.com/stokehold/stokehold/events"
)

// ExtStamp is the extension attribute that holds the stamp of a permitted event,
// POLICY.DECISION.MAC.KEY: the first 32 hex digits of the policy set's digest,
// the decision's id (32 hex digits), the HMAC-SHA256 (base64url without padding)
// and the id of the key that made it. It is one attribute, and so one header,
// since each costs both sides about what a whole stamp does.
const ExtStamp = "stkstamp"

// A stamp binds a permission to what was permitted:
//
//	E   = SHA-256("stk-event-2" 0 F(source) F(id) F(type) F(subject)
//	      F(datacontenttype) F(dataschema) F(stkpipeline) F(stkrun) F(stkstage)
//	      F(stkcause) F(dataref) F(stkactor) F(stklabels) F(stkroute)
//	      F(stkcolumns) F(stkapproval) F(stkreleased) T F(data))
//	D   = SHA-256("stk-decision-1" 0 point 0 policy)
//	id  = hex(E[:16] XOR D[:16])
//	MAC = HMAC-SHA256(key, "stk1" policy E)
//
// F(s) is the length of s in bytes (uvarint) and s; absent attributes have
// length 0. T is one byte 0 for no time, or 1, seconds since 1970 (8 bytes, big
// endian, two's complement) and nanoseconds (4 bytes). policy is the first 16
// bytes of the policy set's digest, of which POLICY is the hex. E covers
// every attribute that an expression can see, so that an event with a valid
// stamp is, to a policy, the event that was judged. Other extension attributes
// (traceparent, say) may change on the way. The id follows from E and is checked
// against it; a plain XOR is enough because D is fixed for a set and point, so
// that two events share an id only if they share 16 bytes of E. The sizes are
// chosen so that the MAC takes one block of SHA-256 inside and one outside.
const (
	eventTag    = "stk-event-2\x00"
	decisionTag = "stk-decision-1\x00"
	stampTag    = "stk1"
)

const (
	decisionIDLen = 32
	policyLen     = 32
	macLen        = 43 // of base64url

	decisionAt = policyLen + 1
	macAt      = decisionAt + decisionIDLen + 1
	keyAt      = macAt + macLen + 1
)

// policyRef names a policy set in stamps and ids.
type policyRef struct {
	short string // POLICY of stamps
	raw   [16]byte
	pads  [points][16]byte // D[:16], by pointIndex
}

// newPolicyRef prepares a short digest; ok is false if it is not one.
func newPolicyRef(short string) (r policyRef, ok bool) {
	if len(short) != policyLen || !isHex(short) {
		return r, false
	}
	if _, err := hex.Decode(r.raw[:], []byte(short)); err != nil {
		return r, false
	}
	r.short = short
	for _, at := range allPoints {
		d := sha256.Sum256(append([]byte(decisionTag+string(at)+"\x00"), r.raw[:]...))
		copy(r.pads[pointIndex(at)][:], d[:])
	}
	return r, true
}

// scratch holds the buffers of one Judge call.
type scratch struct {
	buf []byte
	sum [sha256.Size]byte
}

// eventDigest computes E. Of data beyond the bus's limit, which is refused, only
// the length and the first events.MaxDataBytes count.
func (s *scratch) eventDigest(out *[sha256.Size]byte, c *event.EventContextV1, source string, ext *attributes, data []byte) {
	b := append(s.buf[:0], eventTag...)
	b = appendField(b, source)
	b = appendField(b, c.ID)
	b = appendField(b, c.Type)
	b = appendField(b, deref(c.Subject))
	b = appendField(b, deref(c.DataContentType))
	if c.DataSchema != nil {
		b = appendField(b, c.DataSchema.String())
	} else {
		b = append(b, 0)
	}
	b = appendField(b, ext.pipeline)
	b = appendField(b, ext.run)
	b = appendField(b, ext.stage)
	b = appendField(b, ext.cause)
	b = appendField(b, ext.dataref)
	b = appendField(b, ext.actor)
	b = appendField(b, ext.labels)
	b = appendField(b, ext.route)
	b = appendField(b, ext.columns)
	b = appendField(b, ext.approval)
	b = appendField(b, ext.released)
	if c.Time != nil {
		b = append(b, 1)
		b = binary.BigEndian.AppendUint64(b, uint64(c.Time.Unix()))
		b = binary.BigEndian.AppendUint32(b, uint32(c.Time.Nanosecond()))
	} else {
		b = append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(data)))
	b = append(b, data[:min(len(data), events.MaxDataBytes)]...)
	*out = sha256.Sum256(b)
	s.buf = b
}

// decisionID computes the id of the decision at a point: the same event judged
// again under the same policies has the same id.
func decisionID(at events.Point, policy *policyRef, e *[sha256.Size]byte) string {
	pad := &policy.pads[pointIndex(at)]
	var raw [16]byte
	for i := range raw {
		raw[i] = e[i] ^ pad[i]
	}
	var id [decisionIDLen]byte
	hex.Encode(id[:], raw[:])
	return string(id[:])
}

// mac computes the MAC.
func (s *scratch) mac(out *[sha256.Size]byte, k *macKey, policy *policyRef, e *[sha256.Size]byte) {
	b := append(s.buf[:0], stampTag...)
	b = append(b, policy.raw[:]...)
	b = append(b, e[:]...)
	s.buf = b
	k.sum(out, b)
}

func appendField(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// stamp is a stamp as read from an event.
type stamp struct {
	policy, decision, key string
	mac                   [sha256.Size]byte
}

// readStamp reads a stamp. absent means that there is none; !ok that it is
// malformed. Whether its digits are hexadecimal shows in hexadecimal, which a
// stamp that is as it should be need not be asked.
func readStamp(c *event.EventContextV1) (s stamp, absent, ok bool) {
	v, found := c.Extensions[ExtStamp]
	if !found {
		return s, true, false
	}
	text, ok := v.(string)
	if !ok || len(text) <= keyAt || len(text) > keyAt+maxKeyIDLen ||
		text[decisionAt-1] != '.' || text[macAt-1] != '.' || text[keyAt-1] != '.' {
		return s, false, false
	}
	s.policy, s.decision, s.key = text[:policyLen], text[decisionAt:macAt-1], text[keyAt:]
	var enc [macLen]byte
	copy(enc[:], text[macAt:])
	n, err := rawURL.Decode(s.mac[:], enc[:])
	return s, false, err == nil && n == len(s.mac)
}

func (s *stamp) hexadecimal() bool { return isHex(s.policy) && isHex(s.decision) }

// rawURL refuses bits beyond the last byte, so that a MAC has one spelling.
var rawURL = base64.RawURLEncoding.Strict()

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// authentic reports whether the stamp was made by a key of the ring for this
// event, which was released or not; known is false when the ring lacks the key.
func (s *scratch) authentic(ring *KeyRing, st *stamp, policy *policyRef, e *[sha256.Size]byte, released bool) (known, ok bool) {
	k := ring.keys[st.key]
	if k == nil {
		return false, false
	}
	s.mac(&s.sum, k, policy, e)
	if subtle.ConstantTimeCompare(s.sum[:], st.mac[:]) != 1 {
		return true, false
	}
	at := events.OnPublish
	if released {
		at = events.OnRelease
	}
	pad := &policy.pads[pointIndex(at)]
	var id [decisionIDLen]byte
	var raw [16]byte
	for i := range raw {
		raw[i] = e[i] ^ pad[i]
	}
	hex.Encode(id[:], raw[:])
	return true, string(id[:]) == st.decision
}

// writeStamp puts a stamp on an event, replacing any it had. The attribute's
// name is lower case and the value a string, as CloudEvents asks, so that the
// SDK's validating setter, which allocates, is not needed.
func (s *scratch) writeStamp(c *event.EventContextV1, k *macKey, policy *policyRef, id string, e *[sha256.Size]byte) {
	s.mac(&s.sum, k, policy, e)
	var text [keyAt + maxKeyIDLen]byte
	b := append(append(text[:0], policy.short...), '.')
	b = append(append(b, id...), '.')
	b = append(base64.RawURLEncoding.AppendEncode(b, s.sum[:]), '.')
	b = append(b, k.id...)
	if c.Extensions == nil {
		c.Extensions = make(map[string]any, 1)
	}
	c.Extensions[ExtStamp] = string(b)
}

// removeStamp takes off an event what the Judge alone sets: the stamp, and what
// else it covers.
func removeStamp(c *event.EventContextV1) {
	for _, name := range reserved {
		delete(c.Extensions, name)
	}
}

// formatExtension gives an extension value as the string that travels in a
// header.
func formatExtension(v any) string {
	s, err := cetypes.Format(v)
	if err != nil {
		return ""
	}
	return strings.ToValidUTF8(s, "\ufffd")
}
