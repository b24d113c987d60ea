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

// Bomb is a stored value of many bytes, all the same.
func Bomb() []byte {
	v, err := pack(make([]byte, 2*MaxBytes))
	if err != nil {
		panic(err)
	}
	return v
}

// Pack is the stored form of a bundle's text, whatever that is.
func Pack(tb testing.TB, data []byte) []byte {
	tb.Helper()
	v, err := pack(data)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}
