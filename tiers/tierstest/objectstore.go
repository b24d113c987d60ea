// Package tierstest proves that a driver of the cold tier keeps the contract of
// tiers.ObjectStore, and that of each optional power that it has. Every driver's own
// tests call it.
package tierstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stokehold/stokehold/tiers"
)

// RunObjectStore runs the suite. open returns a store that holds nothing under
// the prefix "tierstest/"; it is called once per subtest, and may return the same
// store if what earlier subtests left was removed.
func RunObjectStore(t *testing.T, open func(t *testing.T) tiers.ObjectStore) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(context.Context, *testing.T, tiers.ObjectStore)
	}{
		{"what is put is got", roundTrip},
		{"putting again is a success", putAgain},
		{"absent objects", absent},
		{"keys that are refused", badKeys},
		{"listing", listing},
		{"listing can be left", listingLeft},
		{"ended contexts", ended},
		{"at once", atOnce},
		{"several writers of one key", severalWriters},
		{"URIs tell objects apart", uris},
		{"more keys than a page has", manyKeys},
		{"content that the key does not name", wrongContent},
		{"ranges", ranges},
		{"into memory of the caller", filling},
		{"only if absent", ifAbsent},
		{"cancelled on the way", cancelled},
		{"two owners", owners},
		{"sweeping", sweeping},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), caseTimeout)
			defer cancel()
			c.run(ctx, t, open(t))
		})
	}
}

const (
	prefix = "tierstest/"
	// cutPrefix is of uploads whose clients left: a server may complete one late, when
	// another case is looking at what there is under prefix.
	cutPrefix   = "tierstest-cut/"
	caseTimeout = 2 * time.Minute
	// sweepTimeout is how long requests of those who left may take to be answered.
	sweepTimeout = 20 * time.Second
)

func body(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = r.Read(b) // never fails
	return b
}

func put(ctx context.Context, t *testing.T, s tiers.ObjectStore, key string, b []byte) {
	t.Helper()
	if err := s.Put(ctx, key, b); err != nil {
		t.Fatal(err)
	}
}

func roundTrip(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	// 20 MiB is beyond where clients begin to upload in parts.
	for _, size := range []int{0, 1, 4096, 1<<20 + 1, 20 << 20} {
		key := fmt.Sprintf("%ssize/%d.parquet", prefix, size)
		want := body(size)
		put(ctx, t, s, key, want)
		got, err := s.Get(ctx, key)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	for _, key := range []string{prefix + "a b", prefix + "é+%&?=#", prefix + "a/b/c/d.e"} {
		put(ctx, t, s, key, []byte(key))
		if got, err := s.Get(ctx, key); err != nil || string(got) != key {
			t.Errorf("key %q: got %q, %v", key, got, err)
		}
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("delete %q: %v", key, err)
		}
	}
}

func putAgain(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	key := prefix + "again"
	put(ctx, t, s, key, body(100))
	put(ctx, t, s, key, body(100))
	if got, err := s.Get(ctx, key); err != nil || !bytes.Equal(got, body(100)) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := s.Delete(ctx, key); err != nil {
		t.Error(err)
	}
}

func absent(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	if _, err := s.Get(ctx, prefix+"absent/object"); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("get: %v, want ErrNotFound", err)
	}
	if err := s.Delete(ctx, prefix+"absent/object"); err != nil {
		t.Errorf("delete: %v", err)
	}
	key := prefix + "gone"
	put(ctx, t, s, key, []byte("x"))
	for range 2 {
		if err := s.Delete(ctx, key); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := s.Get(ctx, key); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("get after delete: %v, want ErrNotFound", err)
	}
}

func badKeys(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	for _, key := range []string{"", "/abs", "../up", "a/../../b", "a/../b", "..", "a//b", "a/", ".hidden", "a/./b", "nul\x00", "line\n", "\x1b[2J", "back\\slash", "\xff", strings.Repeat("k", 600)} {
		if err := s.Put(ctx, key, []byte("x")); !errors.Is(err, tiers.ErrName) {
			t.Errorf("put %.20q: %v, want ErrName", key, err)
		}
		if _, err := s.Get(ctx, key); !errors.Is(err, tiers.ErrName) {
			t.Errorf("get %.20q: %v, want ErrName", key, err)
		}
		if err := s.Delete(ctx, key); !errors.Is(err, tiers.ErrName) {
			t.Errorf("delete %.20q: %v, want ErrName", key, err)
		}
		if r, ok := s.(tiers.RangeReader); ok {
			if _, err := r.ReadRange(ctx, key, 0, make([]byte, 1)); !errors.Is(err, tiers.ErrName) {
				t.Errorf("read %.20q: %v, want ErrName", key, err)
			}
		}
		if p, ok := s.(tiers.AbsentPutter); ok {
			if err := p.PutIfAbsent(ctx, key, []byte("x")); !errors.Is(err, tiers.ErrName) {
				t.Errorf("put %.20q if absent: %v, want ErrName", key, err)
			}
		}
	}
}

func listing(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	want := map[string]int64{}
	for i := range 25 {
		key := fmt.Sprintf("%slist/%02d/object-%d", prefix, i%3, i)
		want[key] = int64(i)
		put(ctx, t, s, key, body(i))
	}
	put(ctx, t, s, prefix+"listless", []byte("not under it"))
	list := func(under string) map[string]int64 {
		got := map[string]int64{}
		for o, err := range s.List(ctx, under) {
			if err != nil {
				t.Fatal(err)
			}
			if _, dup := got[o.Key]; dup {
				t.Errorf("%s listed twice", o.Key)
			}
			if age := time.Since(o.Modified); age < -time.Hour || age > time.Hour {
				t.Errorf("%s modified %s ago", o.Key, age)
			}
			got[o.Key] = o.Bytes
		}
		return got
	}
	if got := list(prefix + "list/"); !maps.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	// 1, 10, 13, 16 and 19: a prefix may end inside a name.
	if got := list(prefix + "list/01/object-1"); len(got) != 5 {
		t.Errorf("listed %v, want five", got)
	}
	if got := list(prefix + "list/none"); len(got) != 0 {
		t.Errorf("nothing there, and listed %v", got)
	}
	for key := range want {
		if err := s.Delete(ctx, key); err != nil {
			t.Error(err)
		}
	}
	if err := s.Delete(ctx, prefix+"listless"); err != nil {
		t.Error(err)
	}
	if got := list(prefix); len(got) != 0 {
		t.Errorf("after deletion: %v", got)
	}
}

func listingLeft(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	for i := range 5 {
		put(ctx, t, s, fmt.Sprintf("%sleft/%d", prefix, i), []byte("x"))
	}
	n := 0
	for _, err := range s.List(ctx, prefix+"left/") {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		t.Errorf("%d objects before leaving", n)
	}
	for i := range 5 {
		if err := s.Delete(ctx, fmt.Sprintf("%sleft/%d", prefix, i)); err != nil {
			t.Error(err)
		}
	}
}

func ended(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Put(ctx, prefix+"late", []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("put: %v", err)
	}
	if _, err := s.Get(ctx, prefix+"late"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
	if err := s.Delete(ctx, prefix+"late"); !errors.Is(err, context.Canceled) {
		t.Errorf("delete: %v", err)
	}
	var last error
	for _, err := range s.List(ctx, prefix) {
		last = err
	}
	if last != nil && !errors.Is(last, context.Canceled) {
		t.Errorf("list: %v", last)
	}
}

func atOnce(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	key := prefix + "at-once"
	want := body(64 << 10)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { // content-addressed: all put the same bytes
			if err := s.Put(ctx, key, want); err != nil {
				t.Error(err)
				return
			}
			if got, err := s.Get(ctx, key); err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if err := s.Delete(ctx, key); err != nil {
		t.Error(err)
	}
}

func uris(_ context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	a, b := s.URI("batches/a"), s.URI("batches/b")
	if a == b || !strings.Contains(a, "://") || !strings.HasSuffix(a, "batches/a") {
		t.Errorf("URIs %q and %q", a, b)
	}
}
