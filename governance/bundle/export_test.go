package bundle

import (
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// Resign replaces the signatures of a bundle by the key's over whatever its text
// is.
func Resign(tb testing.TB, k *SigningKey, data string) []byte {
	tb.Helper()
	out := TryResign(k, []byte(data))
	if out == nil {
		tb.Fatalf("cannot be signed:\n%s", data)
	}
	return out
}

// TryResign is Resign, or nil.
func TryResign(k *SigningKey, data []byte) []byte {
	head, content, err := split(data)
	if err != nil {
		return nil
	}
	i := len(head)
	for j := range head {
		if j > 0 && head[j-1] == '\n' && head[j] == '\n' {
			i = j
			break
		}
	}
	signed, err := note.Sign(&note.Note{Text: string(head[:i])}, k.signer)
	if err != nil {
		return nil
	}
	return append(append(signed, '\n'), content...)
}
