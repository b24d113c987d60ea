package proof_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/stokehold/stokehold/governance/audit/proof"
)

// FuzzLeaf: no input panics, and what decodes without fields of later versions is
// the one form of its entry.
func FuzzLeaf(f *testing.F) {
	f.Add(leaf(1))
	f.Add([]byte("STKL\x01"))
	f.Add([]byte("STKL\x01\x10\x04\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := proof.DecodeLeaf(b)
		if err != nil {
			if !errors.Is(err, proof.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		again := proof.AppendLeaf(nil, &e)
		back, err := proof.DecodeLeaf(again)
		if err != nil || !reflect.DeepEqual(back, e) {
			t.Fatalf("%+v\nthen %+v, %v", e, back, err)
		}
		if len(again) > len(b) {
			t.Fatalf("%d bytes decode to an entry of %d", len(b), len(again))
		}
	})
}

// FuzzRecord: no record that was not signed is accepted, whatever is done to one.
func FuzzRecord(f *testing.F) {
	keys := newKeys(f)
	known := map[string]bool{}
	for _, r := range sign(f, keys, 1, 3, 8) {
		b, err := r.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		known[string(r.Signed)] = true
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := proof.OpenRecord(b, keys)
		if err != nil {
			return
		}
		if !known[string(r.Signed)] {
			t.Fatalf("accepted what was never signed: %s", b)
		}
		if r.Tree().Root() != r.Root {
			t.Fatal("the edge is not that of the root")
		}
	})
}

// FuzzCheckpoint: what parses has one text.
func FuzzCheckpoint(f *testing.F) {
	keys := newKeys(f)
	f.Add(sign(f, keys, 3)[0].Text())
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := proof.SignText(text, keys)
		if err != nil {
			return
		}
		c, err := proof.OpenCheckpoint(signed, keys)
		if err == nil && !bytes.HasPrefix(signed, []byte(c.Text())) {
			t.Fatalf("%q parses to %q", text, c.Text())
		}
	})
}

// FuzzInclusion: nothing that is not in the log is proven.
func FuzzInclusion(f *testing.F) {
	keys := newKeys(f)
	known := map[string]bool{}
	for i := range 9 {
		known[string(leaf(i))] = true
		doc, err := inclusion(f, keys, i, 9).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		p, _, err := proof.CheckInclusion(doc, keys)
		if err == nil && !known[string(p.Leaf)] {
			t.Fatalf("proven: %s", doc)
		}
	})
}
