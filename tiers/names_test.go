package tiers_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/stokehold/stokehold/tiers"
)

func TestToken(t *testing.T) {
	for name, want := range map[string]string{
		"flights/schedule": "flights_schedule",
		"a_b":              "a=5Fb",
		"a.b":              "a=2Eb",
		"é=":               "=C3=A9=3D",
	} {
		if got, err := tiers.Token("dataset", name); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", name, got, err, want)
		}
	}
	for _, bad := range []string{"", "=", "=4", "=zz", "=41", "=2F", "=5f", "a.b", "*", "a b", "=00"} {
		if got, err := tiers.Untoken(bad); !errors.Is(err, tiers.ErrName) {
			t.Errorf("token %q read as %q, %v", bad, got, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"flights/schedule", "a_b", "", ".", "..", "*.>", "a b", "\x00", "\xff", "日本", "=41", strings.Repeat("_", 70)} {
		f.Add(s)
	}
	legal := regexp.MustCompile(`^[-_=a-zA-Z0-9]{1,200}$`) // in a KV key and in a file name
	f.Fuzz(func(t *testing.T, name string) {
		got, err := tiers.Token("dataset", name)
		if err != nil {
			if !errors.Is(err, tiers.ErrName) {
				t.Fatalf("untyped error %v", err)
			}
		} else {
			if !legal.MatchString(got) {
				t.Fatalf("%q became %q", name, got)
			}
			if back, err := tiers.Untoken(got); err != nil || back != name {
				t.Fatalf("%q became %q, read back as %q, %v", name, got, back, err)
			}
		}
		// And the other way: what is accepted as a token is the token of its name.
		if back, err := tiers.Untoken(name); err == nil {
			if again, err := tiers.Token("dataset", back); err != nil || again != name {
				t.Fatalf("token %q is read as %q, whose token is %q, %v", name, back, again, err)
			}
		}
	})
}

func TestCheckKey(t *testing.T) {
	for _, ok := range []string{"a", "batches/sha256/ab/abcd.parquet", "modèle/é"} {
		if err := tiers.CheckKey(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a/.b", "a\\b", "a\x00", "\xff", strings.Repeat("a", 513)} {
		if err := tiers.CheckKey(bad); !errors.Is(err, tiers.ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
