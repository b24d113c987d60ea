package stokehold

import (
	"fmt"
	"log/slog"
)

// Secret is a string that never shows itself: printed, logged or encoded it is
// "[redacted]". Reveal gives the value.
type Secret string

const redacted = "[redacted]"

// Reveal returns the secret itself, for the one call that needs it.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format covers every verb: %x and %q of a string type would not call String.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue keeps log handlers from showing the value.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText keeps encoders, JSON's included, from showing the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
