package events

import (
	"errors"
	"fmt"
)

const (
	// maxTokenBytes bounds one encoded token, so that a subject stays far below
	// the 4,096 bytes that a server takes for one control line.
	maxTokenBytes = 1024
	// noSubject stands in a NATS subject for an event without a subject.
	noSubject = "="
)

// EncodeToken encodes any text as one token of a NATS subject. Letters, digits
// and -:@#+,~! stand for themselves, "/" becomes "_", every other byte becomes
// "=" and two upper-case hexadecimal digits, and the empty text is "=" alone. No
// two texts share a token: DecodeToken gives the text back.
//
// flights/schedule is flights_schedule, a.b is a=2Eb, a_b is a=5Fb.
func EncodeToken(s string) string {
	if s == "" {
		return noSubject
	}
	n := 0
	slash := false
	for i := range len(s) {
		switch {
		case s[i] == '/':
			slash = true
		case !tokenByte(s[i]):
			n++
		}
	}
	if n == 0 && !slash {
		return s
	}
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		switch c := s[i]; {
		case c == '/':
			out = append(out, '_')
		case tokenByte(c):
			out = append(out, c)
		default:
			out = append(out, '=', hex[c>>4], hex[c&15])
		}
	}
	return string(out)
}

// DecodeToken is the inverse of EncodeToken. It refuses what EncodeToken does
// not produce.
func DecodeToken(token string) (string, error) {
	if token == noSubject {
		return "", nil
	}
	if token == "" {
		return "", errors.New("events: empty subject token")
	}
	out := make([]byte, 0, len(token))
	for i := 0; i < len(token); i++ {
		switch c := token[i]; {
		case c == '_':
			out = append(out, '/')
		case tokenByte(c):
			out = append(out, c)
		case c == '=' && i+2 < len(token):
			hi, ok1 := unhex(token[i+1])
			lo, ok2 := unhex(token[i+2])
			b := hi<<4 | lo
			if !ok1 || !ok2 || token[i+1] >= 'a' || token[i+2] >= 'a' || b == '/' || tokenByte(b) {
				return "", fmt.Errorf("events: malformed subject token %q", token)
			}
			out = append(out, b)
			i += 2
		default:
			return "", fmt.Errorf("events: malformed subject token %q", token)
		}
	}
	return string(out), nil
}

func tokenByte(c byte) bool { return tokenBytes[c>>6]>>(c&63)&1 != 0 }

// tokenBytes has the bits of letters, digits and -:@#+,~!
//
//nolint:gochecknoglobals // a constant table
var tokenBytes = func() (set [4]uint64) {
	for _, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-:@#+,~!") {
		set[c>>6] |= 1 << (c & 63)
	}
	return set
}()
