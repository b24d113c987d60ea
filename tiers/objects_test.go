package tiers_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
)

func TestKeySum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sum := sha256.Sum256(rapid.SliceOf(rapid.Byte()).Draw(t, "body"))
		dir := rapid.SampledFrom([]string{"", "batches/sha256/ab/", "m/"}).Draw(t, "dir")
		ext := rapid.SampledFrom([]string{"", ".parquet", ".tar.gz"}).Draw(t, "extension")
		key := fmt.Sprintf("%s%x%s", dir, sum, ext)
		if got, ok := tiers.KeySum(key); !ok || got != sum {
			t.Fatalf("%s: %x, %t", key, got, ok)
		}
		if _, ok := tiers.KeySum(key[1:]); ok && dir == "" {
			t.Fatalf("%s names a hash", key[1:])
		}
	})
	for _, key := range []string{"", "a", tiers.OwnerKey, strings.Repeat("g", 64), strings.Repeat("A", 64), strings.Repeat("a", 63), strings.Repeat("a", 65), strings.Repeat("a", 64) + "/x"} {
		if _, ok := tiers.KeySum(key); ok {
			t.Errorf("%q names a hash", key)
		}
	}
}

func ExampleClaimObjects() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "objects")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cold, err := objectdir.Open(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(tiers.ClaimObjects(ctx, cold, "production", false))
	err = tiers.ClaimObjects(ctx, cold, "staging", false)
	var owned *tiers.OwnedError
	fmt.Println(errors.As(err, &owned), owned.Owner.Deployment)
	fmt.Println(tiers.ClaimObjects(ctx, cold, "staging", true)) // production is gone
	// Output:
	// <nil>
	// true production
	// <nil>
}
