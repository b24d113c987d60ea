package handoff_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/internal/golden"
)

// TestSpecificationVectors holds the bytes printed in the specification against
// the bytes that are sent.
func TestSpecificationVectors(t *testing.T) {
	want, err := handoff.Vectors()
	if err != nil {
		t.Fatal(err)
	}
	golden.Vectors(t, "../../../docs/HANDOFF.md", want)
	empty := []string{"inspect", "leave", "goodbye"}
	for name, b := range want {
		if _, err := handoff.DecodePeerMessage(b); err != nil && !strings.Contains(strings.Join(empty, " "), name) {
			t.Errorf("%s: %v", name, err)
		}
		// No message is good when cut short or with more at its end.
		for _, bad := range [][]byte{b[:len(b)-1], append(b[:len(b):len(b)], 0)} {
			if _, err := handoff.DecodePeerMessage(bad); !errors.Is(err, handoff.ErrProtocol) {
				t.Errorf("%s of %d bytes for %d: %v", name, len(bad), len(b), err)
			}
		}
	}
}

func FuzzDecodePeerMessage(f *testing.F) {
	all, err := handoff.Vectors()
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range all {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := handoff.DecodePeerMessage(b); err != nil && !errors.Is(err, handoff.ErrProtocol) && !errors.Is(err, handoff.ErrVersion) {
			t.Fatal(err)
		}
	})
}

// FuzzServer throws packets at a server, which must answer or end the connection
// and hold nothing of it afterwards.
func FuzzServer(f *testing.F) {
	all, err := handoff.Vectors()
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range all {
		f.Add(b, true)
		f.Add(b, false)
	}
	o := serve(f, nil)
	h := put(f, o.arena, 1)
	f.Add(handoff.LeasePacket(1, h), true)
	f.Fuzz(func(t *testing.T, b []byte, greeted bool) {
		if len(b) == 0 || len(b) > 2*handoff.MaxPacket {
			return // the kernel's business
		}
		r, err := openRaw(o.Path())
		if err != nil {
			t.Fatal(err)
		}
		if greeted {
			if err := r.greet(); err != nil {
				t.Fatal(err)
			}
		}
		_ = r.write(b)
		_ = r.write(b)
		r.close()
		eventually(t, "the connection forgotten", func() bool { return len(o.Status().Peers) == 0 && o.arena.Stats().Leases == 0 })
	})
}
