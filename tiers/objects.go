package tiers

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

const maxKeyBytes = 512

// CheckKey says whether key may name an object, for drivers: UTF-8 of 1 to 512
// bytes without control characters, a clean relative path whose elements do not
// begin with a dot. The error wraps ErrName.
func CheckKey(key string) error {
	bad := func(why string) error { return fmt.Errorf("%w: key %.80q %s", ErrName, key, why) }
	switch {
	case key == "" || len(key) > maxKeyBytes:
		return bad(fmt.Sprintf("has %d bytes, want 1 to %d", len(key), maxKeyBytes))
	case !utf8.ValidString(key):
		return bad("is not UTF-8")
	case strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }):
		return bad("has a control character or backslash")
	case strings.HasPrefix(key, "/") || path.Clean(key) != key:
		return bad("is not a clean relative path")
	}
	for part := range strings.SplitSeq(key, "/") {
		if strings.HasPrefix(part, ".") {
			return bad("has an element that begins with a dot")
		}
	}
	return nil
}
