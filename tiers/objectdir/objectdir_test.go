package objectdir_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/objectdir"
	"github.com/stokehold/stokehold/tiers/tierstest"
)

func TestObjectStore(t *testing.T) {
	tierstest.RunObjectStore(t, func(t *testing.T) tiers.ObjectStore {
		t.Helper()
		s, err := objectdir.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	s, err := objectdir.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "secret")); err != nil {
		t.Fatal(err)
	}
	if body, err := s.Get(context.Background(), "secret"); err == nil {
		t.Errorf("read %d bytes through a link", len(body))
	}
}

func Example() {
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
	if err := cold.Put(ctx, "models/a", []byte("weights")); err != nil {
		fmt.Println(err)
		return
	}
	body, err := cold.Get(ctx, "models/a")
	fmt.Println(string(body), err)
	_, err = cold.Get(ctx, "models/b")
	fmt.Println(errors.Is(err, tiers.ErrNotFound))
	// Output:
	// weights <nil>
	// true
}
