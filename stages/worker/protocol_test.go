package worker_test

import (
	"errors"
	"testing"

	"github.com/stokehold/stokehold/internal/golden"
	"github.com/stokehold/stokehold/stages/worker"
)

// TestSpecificationVectors holds the bytes printed in the specification against
// the bytes that are sent.
func TestSpecificationVectors(t *testing.T) {
	want, err := worker.Vectors()
	if err != nil {
		t.Fatal(err)
	}
	golden.Vectors(t, "../../docs/WORKER-PROTOCOL.md", want)
	for name, b := range want {
		if _, err := worker.DecodeMessage(b); err != nil && name != "forget" {
			t.Errorf("%s: %v", name, err)
		}
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
