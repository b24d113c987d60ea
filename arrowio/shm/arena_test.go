package shm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

const page = 4096

func arena(tb testing.TB, bytes int64) *shm.Arena {
	tb.Helper()
	a, err := shm.New(shm.Config{Bytes: bytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { a.Close() })
	return a
}

func floats(tb testing.TB, rows int) arrow.RecordBatch {
	tb.Helper()
	s := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Float64}, {Name: "s", Type: arrow.BinaryTypes.String}}, nil)
	b := array.NewRecordBuilder(memory.NewGoAllocator(), s)
	defer b.Release()
	for i := range rows {
		b.Field(0).(*array.Float64Builder).Append(float64(i))
		b.Field(1).(*array.StringBuilder).Append(strconv.Itoa(i))
	}
	rec := b.NewRecordBatch()
	tb.Cleanup(rec.Release)
	return rec
}

func loan(tb testing.TB, a *shm.Arena, n int64) *shm.Loan {
	tb.Helper()
	l, err := a.Loan(context.Background(), n)
	if err != nil {
		tb.Fatal(err)
	}
	return l
}

// until polls a condition, for at most 10 s.
func until(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			tb.Fatal("timed out waiting until", what)
		}
	}
}

func descriptors(tb testing.TB) int {
	tb.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(all)
}

func TestSlotLife(t *testing.T) {
	a := arena(t, 4*page)
	l := loan(t, a, 100)
	copy(l.Bytes(), "in place")
	if len(l.Bytes()) != 100 || cap(l.Bytes()) != 100 {
		t.Fatal(len(l.Bytes()), cap(l.Bytes()))
	}
	h := l.Publish()
	if l.Bytes() != nil || l.Publish() != (shm.Handle{}) {
		t.Error("the loan outlives its publication")
	}
	lease, err := a.Lease(h, "reader")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Lease(h, "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error("lease of a dropped slot:", err)
	}
	if err := a.Drop(h); !errors.Is(err, arrowio.ErrGone) {
		t.Error("second drop:", err)
	}
	if string(lease.Bytes()[:8]) != "in place" {
		t.Error("the lease does not keep the bytes")
	}
	if s := a.Stats(); s.Slots != 1 || s.Leases != 1 || s.Used != 128 || s.Loans != 0 {
		t.Errorf("%+v", s)
	}
	lease.Release()
	lease.Release()
	if lease.Bytes() != nil {
		t.Error("bytes after release")
	}
	if s := a.Stats(); s.Slots != 0 || s.Leases != 0 || s.Used != 0 || s.HighWater != 128 || s.Released != 1 {
		t.Errorf("%+v", s)
	}
}

func TestStaleAndForgedHandles(t *testing.T) {
	a := arena(t, page)
	h := loan(t, a, 64).Publish()
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	again := loan(t, a, 64).Publish()
	if again.Offset != h.Offset || again.Generation == h.Generation {
		t.Fatal(h, again)
	}
	forged := []shm.Handle{h, {}, again, again, again, again}
	forged[2].Length++
	forged[3].Generation++
	forged[4].Offset += 64
	forged[5].Arena = "00"
	for _, h := range forged {
		if _, err := a.Lease(h, "x"); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%v: %v", h, err)
		}
		if err := a.Drop(h); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%v: %v", h, err)
		}
	}
	open := loan(t, a, 64)
	unpublished := shm.Handle{Arena: a.ID(), Offset: 64, Length: 64, Generation: again.Generation + 1}
	if _, err := a.Lease(unpublished, "x"); !errors.Is(err, arrowio.ErrGone) {
		t.Error("a loan can be leased:", err)
	}
	open.Cancel()
}

func TestLoanWaitsInOrder(t *testing.T) {
	a := arena(t, page)
	first := loan(t, a, page)
	if _, err := a.Loan(context.Background(), page+1); !errors.Is(err, shm.ErrTooLarge) {
		t.Fatal(err)
	}
	order := make(chan string, 2)
	var wg sync.WaitGroup
	wait := func(name string, n int64, ctx context.Context, waiting int) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			l, err := a.Loan(ctx, n)
			if err != nil {
				order <- name + " failed"
				return
			}
			order <- name
			l.Cancel()
		}()
		until(t, name+" waits", func() bool { return a.Stats().Waiting == waiting })
	}
	wait("large", page, context.Background(), 1)
	wait("small", 64, context.Background(), 2)
	first.Cancel()
	if got := <-order; got != "large" {
		t.Errorf("%s came first", got)
	}
	if got := <-order; got != "small" {
		t.Error(got)
	}
	wg.Wait()
	first = loan(t, a, page-64)
	ctx, cancel := context.WithCancel(context.Background())
	wait("large", page, ctx, 1)
	wait("small", 64, context.Background(), 2)
	cancel() // those behind who fit go on
	got := map[string]bool{<-order: true, <-order: true}
	if !got["large failed"] || !got["small"] {
		t.Error(got)
	}
	wg.Wait()
	first.Cancel()
	if s := a.Stats(); s.Used != 0 || s.Waiting != 0 {
		t.Errorf("%+v", s)
	}
}

func TestReclaimOwner(t *testing.T) {
	a := arena(t, page)
	h := loan(t, a, 64).Publish()
	var dead *shm.Lease
	for range 3 {
		dead, _ = a.Lease(h, "dead")
	}
	alive, _ := a.Lease(h, "alive")
	if err := a.Drop(h); err != nil {
		t.Fatal(err)
	}
	if n := a.ReclaimOwner("dead"); n != 3 {
		t.Error(n)
	}
	dead.Release()
	if s := a.Stats(); s.Leases != 1 || s.Slots != 1 || s.Reclaimed != 3 {
		t.Errorf("%+v", s)
	}
	alive.Release()
	if s := a.Stats(); s.Slots != 0 {
		t.Errorf("%+v", s)
	}
}

func TestCloseWaitsForReaders(t *testing.T) {
	before := descriptors(t)
	a, err := shm.New(shm.Config{Bytes: page})
	if err != nil {
		t.Fatal(err)
	}
	var host shm.Host
	if err := host.Add(a); err != nil {
		t.Fatal(err)
	}
	l := loan(t, a, 64)
	copy(l.Bytes(), "kept")
	h := l.Publish()
	lease, err := host.Open(h.String(), "reader")
	if err != nil {
		t.Fatal(err)
	}
	open := loan(t, a, 64)
	waiting := make(chan error, 1)
	go func() {
		_, err := a.Loan(context.Background(), page)
		waiting <- err
	}()
	until(t, "a loan waits", func() bool { return a.Stats().Waiting == 1 })
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
	if _, err := a.Loan(context.Background(), 64); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
	if _, err := host.Open(h.String(), "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	copy(open.Bytes(), "still writable")
	if string(lease.Bytes()[:4]) != "kept" {
		t.Error("unmapped under a reader")
	}
	lease.Release()
	open.Publish()
	if _, ok := host.Arena(a.ID()); ok {
		t.Error("a closed arena without users is still known")
	}
	if _, err := host.Open(h.String(), "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	if _, err := host.Open("file:///x", "late"); !errors.Is(err, arrowio.ErrURI) {
		t.Error(err)
	}
	if s := host.Stats(); s.Arenas != 0 || s.Leased != 1 {
		t.Errorf("%+v", s)
	}
}

func TestBatchInPlace(t *testing.T) {
	a := arena(t, 1<<20)
	rec := floats(t, 1000)
	var copies arrowio.Copies
	h, err := a.Put(context.Background(), rec, &copies)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := arrowio.BodyBytes(rec)
	if copies.Bytes() != body {
		t.Errorf("copied %d bytes of a body of %d", copies.Bytes(), body)
	}
	lease, err := a.Lease(h, "reader")
	if err != nil {
		t.Fatal(err)
	}
	got, err := lease.Batch()
	if err != nil {
		t.Fatal(err)
	}
	if !array.RecordEqual(rec, got) {
		t.Error("differs")
	}
	for _, col := range got.Columns() {
		for _, b := range col.Data().Buffers() {
			if b != nil && b.Len() > 0 && !a.Contains(b.Bytes()) {
				t.Error("a buffer lies outside the arena")
			}
		}
	}
	col := got.Column(0)
	col.Retain()
	got.Release()
	if a.Stats().Leases != 1 {
		t.Error("lease ended while a column is held")
	}
	col.Release()
	if a.Stats().Leases != 0 {
		t.Error("lease outlives the batch")
	}
	bad := loan(t, a, 640)
	clear(bad.Bytes())
	h = bad.Publish()
	lease, _ = a.Lease(h, "reader")
	if _, err := lease.Batch(); !errors.Is(err, arrowio.ErrCorrupt) || a.Stats().Leases != 0 {
		t.Error(err, a.Stats().Leases)
	}
}

func TestNoMemory(t *testing.T) {
	if _, err := shm.New(shm.Config{Bytes: 1 << 50}); !errors.Is(err, shm.ErrNoMemory) {
		t.Error(err)
	}
	if _, err := shm.New(shm.Config{}); err == nil {
		t.Error("an arena of nothing")
	}
}

// TestAllocatorKeepsAccount loans, publishes, leases and ends slots in random
// order; the slots must never overlap and all memory must come back as one piece.
func TestAllocatorKeepsAccount(t *testing.T) {
	const size = 64 * page
	a := arena(t, size)
	r := rand.New(rand.NewPCG(1, 2))
	type held struct {
		h    shm.Handle
		mark byte
	}
	var slots []held
	for i := range 5000 {
		if r.IntN(2) == 0 {
			ctx, cancel := context.WithCancel(context.Background())
			if s := a.Stats(); s.Used > size/2 {
				cancel() // may not fit: do not wait
			}
			l, err := a.Loan(ctx, 1+r.Int64N(4*page))
			cancel()
			if err == nil {
				mark := byte(i)
				for j := range l.Bytes() {
					l.Bytes()[j] = mark
				}
				slots = append(slots, held{l.Publish(), mark})
			}
		} else if len(slots) > 0 {
			k := r.IntN(len(slots))
			s := slots[k]
			lease, err := a.Lease(s.h, "x")
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range lease.Bytes() {
				if b != s.mark {
					t.Fatalf("slot %v was overwritten", s.h)
				}
			}
			lease.Release()
			if err := a.Drop(s.h); err != nil {
				t.Fatal(err)
			}
			slots = append(slots[:k], slots[k+1:]...)
		}
	}
	for _, s := range slots {
		if err := a.Drop(s.h); err != nil {
			t.Fatal(err)
		}
	}
	if s := a.Stats(); s.Used != 0 || s.Slots != 0 {
		t.Errorf("%+v", s)
	}
	loan(t, a, size).Cancel() // fails to fit if free memory is in pieces
}

func TestConcurrentUse(t *testing.T) {
	a := arena(t, 16*page)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 200 {
				l, err := a.Loan(context.Background(), int64(64+(i*w)%(6*page)))
				if err != nil {
					t.Error(err)
					return
				}
				l.Bytes()[0] = byte(i)
				h := l.Publish()
				lease, err := a.Lease(h, strconv.Itoa(w))
				if err != nil {
					t.Error(err)
					return
				}
				if err := a.Drop(h); err != nil || lease.Bytes()[0] != byte(i) {
					t.Error(err)
				}
				if i%2 == 0 {
					lease.Release()
				} else {
					a.ReclaimOwner(strconv.Itoa(w))
				}
			}
		}()
	}
	wg.Wait()
	if s := a.Stats(); s.Used != 0 || s.Leases != 0 {
		t.Errorf("%+v", s)
	}
}

func Example() {
	a, err := shm.New(shm.Config{Bytes: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Close()
	loan, err := a.Loan(context.Background(), 5)
	if err != nil {
		fmt.Println(err)
		return
	}
	copy(loan.Bytes(), "coals") // written in place
	h := loan.Publish()

	lease, err := a.Lease(h, "stoker")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s, generation %d\n", lease.Bytes(), h.Generation)
	a.Drop(h)
	lease.Release() // the last hold: the memory is reused
	_, err = a.Lease(h, "stoker")
	fmt.Println(errors.Is(err, arrowio.ErrGone), a.Stats().Used)
	// Output:
	// coals, generation 1
	// true 0
}

func BenchmarkLease(b *testing.B) {
	a := arena(b, page)
	h := loan(b, a, 64).Publish()
	b.ReportAllocs()
	for b.Loop() {
		l, err := a.Lease(h, "reader")
		if err != nil {
			b.Fatal(err)
		}
		l.Release()
	}
}

func BenchmarkPutLeaseRead(b *testing.B) {
	a := arena(b, 64<<20)
	for _, rows := range []int{1000, 100_000} {
		rec := floats(b, rows)
		size, _ := arrowio.EncodedSize(rec)
		b.Run(strconv.FormatInt(size, 10), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				h, err := a.Put(context.Background(), rec, nil)
				if err != nil {
					b.Fatal(err)
				}
				l, err := a.Lease(h, "reader")
				if err != nil {
					b.Fatal(err)
				}
				got, err := l.Batch(arrowio.Trusted())
				if err != nil {
					b.Fatal(err)
				}
				got.Release()
				if err := a.Drop(h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestLoanAfterItsDeadline: a deadline bounds the wait for room. Where there is none
// to wait for a caller that was late, as on a busy machine, is served all the same.
func TestLoanAfterItsDeadline(t *testing.T) {
	a := arena(t, 4*page)
	late, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	l, err := a.Loan(late, 3*page)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Loan(late, 3*page); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without room: %v, want DeadlineExceeded", err)
	}
	l.Cancel()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := a.Loan(ended, page); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
