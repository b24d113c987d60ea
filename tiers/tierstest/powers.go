package tierstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// severalWriters: objects never mix, even where keys are not of their content.
func severalWriters(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	key := prefix + "several"
	const writers, size = 6, 3 << 20
	bodies := make([][]byte, writers)
	var wg sync.WaitGroup
	for i := range bodies {
		bodies[i] = bytes.Repeat([]byte{byte('a' + i)}, size+i)
		wg.Go(func() {
			if err := s.Put(ctx, key, bodies[i]); err != nil {
				t.Errorf("writer %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	got, err := s.Get(ctx, key)
	if err != nil || len(got) < size || !bytes.Equal(got, bodies[len(got)-size]) {
		t.Errorf("got %d bytes that no writer put, %v", len(got), err)
	}
	remove(ctx, t, s, key)
}

func remove(ctx context.Context, t *testing.T, s tiers.ObjectStore, key string) {
	t.Helper()
	if err := s.Delete(ctx, key); err != nil {
		t.Errorf("delete %s: %v", key, err)
	}
}

func manyKeys(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	const n = 1050 // S3 lists at most 1,000 at once
	key := func(i int) string { return fmt.Sprintf("%smany/%02d/%04d", prefix, i%7, i) }
	each := func(do func(ctx context.Context, i int) error) {
		t.Helper()
		g, ctx := errgroup.WithContext(ctx)
		g.SetLimit(16)
		for i := range n {
			g.Go(func() error { return do(ctx, i) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	count := func() (n int) {
		seen := map[string]bool{}
		for o, err := range s.List(ctx, prefix+"many/") {
			if err != nil {
				t.Fatal(err)
			}
			if seen[o.Key] {
				t.Errorf("%s listed twice", o.Key)
			}
			seen[o.Key] = true
		}
		return len(seen)
	}
	each(func(ctx context.Context, i int) error { return s.Put(ctx, key(i), []byte("x")) })
	if got := count(); got != n {
		t.Errorf("listed %d of %d", got, n)
	}
	each(func(ctx context.Context, i int) error {
		if i%2 == 0 {
			return s.Delete(ctx, key(i))
		}
		return nil
	})
	if got := count(); got != n/2 {
		t.Errorf("listed %d of %d after deletion", got, n/2)
	}
	each(func(ctx context.Context, i int) error { return s.Delete(ctx, key(i)) })
	if got := count(); got != 0 {
		t.Errorf("listed %d after deletion of all", got)
	}
}

func contentKey(b []byte) string { return fmt.Sprintf("%ssha256/%x.bin", prefix, sha256.Sum256(b)) }

func wrongContent(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	for _, size := range []int{0, 1 << 16, 12<<20 + 1} {
		right := body(size)
		key := contentKey(right)
		wrong := append(bytes.Clone(right), 'x')
		if size > 0 {
			wrong = wrong[:size]
			wrong[size/2] ^= 1
		}
		if err := s.Put(ctx, key, wrong); !errors.Is(err, arrowio.ErrCorrupt) {
			t.Errorf("%d bytes of another hash than the key's: %v, want arrowio.ErrCorrupt", size, err)
		}
		if _, err := s.Get(ctx, key); !errors.Is(err, tiers.ErrNotFound) {
			t.Errorf("%d bytes: stored: %v", size, err)
		}
		put(ctx, t, s, key, right)
		if got, err := s.Get(ctx, key); err != nil || !bytes.Equal(got, right) {
			t.Errorf("%d bytes: got %d, %v", size, len(got), err)
		}
		remove(ctx, t, s, key)
	}
}

func ranges(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	r, ok := s.(tiers.RangeReader)
	if !ok {
		t.Skip("the driver reads no ranges")
	}
	const size = 6<<20 + 17
	want, key := body(size), prefix+"range"
	put(ctx, t, s, key, want)
	for _, c := range []struct{ offset, length, got int }{
		{0, size, size}, {0, 1, 1}, {size - 1, 1, 1}, {5<<20 - 3, 1<<20 + 7, 1<<20 + 7}, {0, size + 1, size}, {size - 5, 10, 5}, {size, 1, 0}, {size + 100, 10, 0}, {7, 0, 0},
	} {
		dst := bytes.Repeat([]byte{0xee}, c.length)
		n, err := r.ReadRange(ctx, key, int64(c.offset), dst)
		if c.got < c.length && !errors.Is(err, io.EOF) || c.got == c.length && err != nil {
			t.Errorf("%d bytes from %d: %v", c.length, c.offset, err)
		}
		if n != c.got || n > 0 && !bytes.Equal(dst[:n], want[c.offset:c.offset+n]) {
			t.Errorf("%d bytes from %d: got %d, want %d, or not the right ones", c.length, c.offset, n, c.got)
		}
		if bytes.ContainsFunc(dst[n:], func(r rune) bool { return r == 0 }) {
			t.Errorf("%d bytes from %d: wrote beyond what it returned", c.length, c.offset)
		}
	}
	if _, err := r.ReadRange(ctx, prefix+"no-range", 0, make([]byte, 1)); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	if _, err := r.ReadRange(ctx, key, -1, make([]byte, 1)); err == nil {
		t.Error("a negative offset")
	}
	remove(ctx, t, s, key)
}

func filling(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	f, ok := s.(tiers.Filler)
	if !ok {
		t.Skip("the driver fills no memory")
	}
	for _, size := range []int{0, 1, 6<<20 + 17} {
		want, key := body(size), fmt.Sprintf("%sfill/%d", prefix, size)
		put(ctx, t, s, key, want)
		for _, room := range []int{size, size + 100} {
			for _, sum := range []hash.Hash{nil, sha256.New()} {
				dst := bytes.Repeat([]byte{0xee}, room)
				n, err := f.Fill(ctx, key, dst, sum)
				if err != nil || n != size || !bytes.Equal(dst[:n], want) {
					t.Errorf("%d bytes: got %d, %v, or not the right ones", size, n, err)
				}
				if bytes.ContainsFunc(dst[size:], func(r rune) bool { return r == 0 }) {
					t.Errorf("%d bytes: wrote beyond them", size)
				}
				if right := sha256.Sum256(want); sum != nil && !bytes.Equal(sum.Sum(nil), right[:]) {
					t.Errorf("%d bytes: the hash is not theirs", size)
				}
			}
		}
		if size > 0 {
			if _, err := f.Fill(ctx, key, make([]byte, size-1), nil); !errors.Is(err, tiers.ErrTooLarge) {
				t.Errorf("%d bytes into one less: %v, want ErrTooLarge", size, err)
			}
		}
		remove(ctx, t, s, key)
	}
	if _, err := f.Fill(ctx, prefix+"no-fill", make([]byte, 1), nil); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	if _, err := f.Fill(ctx, "../no", make([]byte, 1), nil); !errors.Is(err, tiers.ErrName) {
		t.Errorf("a key that is refused: %v", err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := f.Fill(over, prefix+"no-fill", make([]byte, 1), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context: %v", err)
	}
}

func guarantees(s tiers.ObjectStore) tiers.Guarantees {
	if g, ok := s.(tiers.Guarantor); ok {
		return g.Guarantees()
	}
	return tiers.Guarantees{}
}

func ifAbsent(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	p, ok := s.(tiers.AbsentPutter)
	if !ok {
		t.Skip("the driver puts nothing conditionally")
	}
	g := guarantees(s)
	for _, c := range []struct {
		name    string
		size    int
		claimed bool
		rounds  int
	}{{"small", 100, g.ConditionalPut, 20}, {"in parts", 12 << 20, g.ConditionalMultipart, 2}} {
		for round := range c.rounds {
			key := fmt.Sprintf("%sabsent/%d-%d", prefix, c.size, round)
			const writers = 4
			errs := make([]error, writers)
			var wg sync.WaitGroup
			for i := range writers {
				wg.Go(func() { errs[i] = p.PutIfAbsent(ctx, key, bytes.Repeat([]byte{byte(i)}, c.size)) })
			}
			wg.Wait()
			winners, winner := 0, 0
			for i, err := range errs {
				if err == nil {
					winners, winner = winners+1, i
				} else if !errors.Is(err, tiers.ErrExists) && c.claimed {
					t.Errorf("%s: %v, want ErrExists", c.name, err)
				}
			}
			got, err := s.Get(ctx, key)
			if err != nil || len(got) != c.size {
				t.Errorf("%s: got %d bytes, %v", c.name, len(got), err)
			}
			// In parts the condition is judged at the end, where two may meet.
			if c.claimed && c.size == 100 && (winners != 1 || !bytes.Equal(got, bytes.Repeat([]byte{byte(winner)}, c.size))) {
				t.Errorf("%s: %d winners, one is claimed", c.name, winners)
			}
			if err := p.PutIfAbsent(ctx, key, make([]byte, c.size)); c.claimed && !errors.Is(err, tiers.ErrExists) {
				t.Errorf("%s: put over an object: %v, want ErrExists", c.name, err)
			}
			remove(ctx, t, s, key)
		}
		if !c.claimed {
			t.Logf("%s: not claimed by this store", c.name)
		}
	}
}

// cancelled: an upload that is cut off at any moment leaves the whole object or
// nothing, once the sweeper has passed.
func cancelled(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	want := body(24 << 20)
	begun := time.Now()
	put(ctx, t, s, cutPrefix+"whole", want)
	whole := time.Since(begun)
	remove(ctx, t, s, cutPrefix+"whole")
	ended := 0
	for i := range 8 {
		key := fmt.Sprintf("%s%d", cutPrefix, i)
		short, cancel := context.WithTimeout(ctx, whole*time.Duration(i)/8+time.Microsecond)
		err := s.Put(short, key, want)
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the context's error", err)
		}
		if err != nil {
			ended++
		}
	}
	if ended == 0 {
		t.Error("none was cut off: this proves nothing")
	}
	sweeper, ok := s.(tiers.PartialSweeper)
	if ok {
		// A server may still begin an upload whose client has left.
		for begun := time.Now(); ; {
			n, err := sweeper.SweepPartial(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			if n == 0 {
				break
			}
			if time.Since(begun) > sweepTimeout {
				t.Fatalf("swept %d more after %s", n, sweepTimeout)
			}
		}
	}
	for o, err := range s.List(ctx, cutPrefix) {
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Get(ctx, o.Key); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", o.Key, len(got), err)
		}
		remove(ctx, t, s, o.Key)
	}
}

func owners(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	remove(ctx, t, s, tiers.OwnerKey)
	if _, err := tiers.ObjectsOwner(ctx, s); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("owner of what nobody claimed: %v", err)
	}
	for range 2 {
		if err := tiers.ClaimObjects(ctx, s, "here", false); err != nil {
			t.Fatal(err)
		}
	}
	err := tiers.ClaimObjects(ctx, s, "there", false)
	var owned *tiers.OwnedError
	if !errors.As(err, &owned) || !errors.Is(err, tiers.ErrOwned) || owned.Owner.Deployment != "here" || !strings.Contains(err.Error(), "here") {
		t.Errorf("another deployment: %v, want ErrOwned", err)
	}
	if err := tiers.ClaimObjects(ctx, s, "there", true); err != nil {
		t.Errorf("take over: %v", err)
	}
	if err := tiers.ClaimObjects(ctx, s, "here", false); !errors.Is(err, tiers.ErrOwned) {
		t.Errorf("the former owner: %v", err)
	}
	if err := tiers.ClaimObjects(ctx, s, "", true); !errors.Is(err, tiers.ErrName) {
		t.Errorf("nobody: %v", err)
	}
	if err := s.Put(ctx, tiers.OwnerKey, []byte("not ours")); err != nil {
		t.Fatal(err)
	}
	if err := tiers.ClaimObjects(ctx, s, "here", true); !errors.Is(err, tiers.ErrOwned) {
		t.Errorf("somebody else's marker: %v", err)
	}
	remove(ctx, t, s, tiers.OwnerKey)
}

func sweeping(ctx context.Context, t *testing.T, s tiers.ObjectStore) {
	t.Helper()
	remove(ctx, t, s, tiers.OwnerKey)
	for _, name := range []string{"swept/used", "swept/unused", "kept/unused"} {
		put(ctx, t, s, prefix+name, []byte(name))
	}
	sweep := tiers.ObjectSweep{
		Store: s, Deployment: "here", Prefix: prefix + "swept/", Grace: tiers.MinGrace,
		Referenced: func(_ context.Context, key string) (bool, error) { return strings.HasSuffix(key, "/used"), nil },
	}
	if _, err := tiers.SweepObjects(ctx, sweep); !errors.Is(err, tiers.ErrNotFound) {
		t.Errorf("a store that nobody claimed: %v", err)
	}
	if err := tiers.ClaimObjects(ctx, s, "there", false); err != nil {
		t.Fatal(err)
	}
	if _, err := tiers.SweepObjects(ctx, sweep); !errors.Is(err, tiers.ErrOwned) {
		t.Errorf("another's store: %v", err)
	}
	if err := tiers.ClaimObjects(ctx, s, "here", true); err != nil {
		t.Fatal(err)
	}
	if done, err := tiers.SweepObjects(ctx, sweep); err != nil || done.Seen != 2 || done.Young != 2 || done.Removed != 0 {
		t.Errorf("within the grace: %+v, %v", done, err)
	}
	for _, moved := range []time.Duration{time.Hour, -time.Hour} { // the store's clock
		sweep.Store = aged{s, moved}
		if done, err := tiers.SweepObjects(ctx, sweep); err != nil || done.Young != 2 || done.Removed != 0 {
			t.Errorf("its clock moved by %v: %+v, %v", moved, done, err)
		}
	}
	sweep.Grace = 0
	if _, err := tiers.SweepObjects(ctx, sweep); err == nil {
		t.Error("a sweep without a grace")
	}
	sweep.Grace, sweep.Store = tiers.MinGrace, aged{s, tiers.ClockStep + 2*tiers.MinGrace}
	down := errors.New("catalog is down")
	ask := sweep.Referenced
	sweep.Referenced = func(context.Context, string) (bool, error) { return false, down }
	if done, err := tiers.SweepObjects(ctx, sweep); !errors.Is(err, down) || done.Removed != 0 {
		t.Errorf("without an answer: %+v, %v", done, err)
	}
	sweep.Referenced = ask
	if done, err := tiers.SweepObjects(ctx, sweep); err != nil || done.Removed != 1 || done.Bytes != int64(len("swept/unused")) {
		t.Errorf("beyond the grace: %+v, %v", done, err)
	}
	for name, there := range map[string]bool{"swept/used": true, "swept/unused": false, "kept/unused": true} {
		if _, err := s.Get(ctx, prefix+name); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
		remove(ctx, t, s, prefix+name)
	}
	remove(ctx, t, s, tiers.OwnerKey)
}

// aged is a store whose clock was moved. Ages are what the store says, whatever time
// the machine has.
type aged struct {
	tiers.ObjectStore
	by time.Duration
}

func (a aged) Now(context.Context) (time.Time, error) { return time.Now().Add(a.by), nil }
