package handoff_test

import (
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// TestSpecificationVectors holds the bytes printed in the specification against
// the bytes that are sent.
func TestSpecificationVectors(t *testing.T) {
	page, err := os.ReadFile("../../../docs/HANDOFF.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```vectors\n")
	if !ok {
		t.Fatal("no vectors in the specification")
	}
	text, _, _ = strings.Cut(text, "```")
	want, err := handoff.Vectors()
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
	empty := []string{"inspect", "leave", "goodbye"}
	for name, b := range want {
		if got[name] != hex.EncodeToString(b) {
			t.Errorf("%s: the specification says %s, this package sends %s", name, got[name], hex.EncodeToString(b))
		}
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
	if len(got) != len(want) {
		t.Errorf("%d vectors, want %d", len(got), len(want))
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
