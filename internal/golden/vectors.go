package golden

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// Vectors fails the test if the test vectors printed on a protocol's page are not
// the messages in want, by name. On the page they stand in a block ```vectors: a
// name on a line of its own, its bytes in hexadecimal on the indented lines after it.
func Vectors(t testing.TB, page string, want map[string][]byte) {
	t.Helper()
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(raw), "```vectors\n")
	if !ok {
		t.Fatalf("no vectors in %s", page)
	}
	text, _, _ = strings.Cut(text, "```")
	name := ""
	got := map[string]string{}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, " ") {
			name = strings.TrimSpace(line)
			continue
		}
		got[name] += strings.Join(strings.Fields(line), "")
	}
	for name, b := range want {
		if got[name] != hex.EncodeToString(b) {
			t.Errorf("%s: %s says %s, this package sends %s", name, page, got[name], hex.EncodeToString(b))
		}
		delete(got, name)
	}
	for name := range got {
		t.Errorf("%s: %s has it, this package does not send it", name, page)
	}
}
