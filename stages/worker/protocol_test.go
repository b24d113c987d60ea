package worker_test

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/stages/worker"
)

// TestSpecificationVectors holds the bytes printed in the specification against
// the bytes that are sent.
func TestSpecificationVectors(t *testing.T) {
	page, err := os.ReadFile("../../docs/WORKER-PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```vectors\n")
	if !ok {
		t.Fatal("no vectors in the specification")
	}
	text, _, _ = strings.Cut(text, "```")
	want, err := worker.Vectors()
	if err != nil {
		t.Fatal(err)
	}
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
			t.Errorf("%s: the specification says %s, this package sends %s", name, got[name], hex.EncodeToString(b))
		}
		if _, err := worker.DecodeMessage(b); err != nil && name != "forget" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d vectors, want %d", len(got), len(want))
	}
}

func FuzzDecodeMessage(f *testing.F) {
	all, err := worker.Vectors()
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range all {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := worker.DecodeMessage(b); err != nil && !errors.Is(err, worker.ErrProtocol) {
			t.Fatal(err)
		}
	})
}
