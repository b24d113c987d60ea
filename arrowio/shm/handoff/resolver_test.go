package handoff_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

func refTo(uri string) arrowio.Ref {
	schema := arrow.NewSchema([]arrow.Field{{Name: "x", Type: arrow.PrimitiveTypes.Int64}}, nil)
	return arrowio.Ref{
		Dataset: "d", Sequence: 1, Rows: rows, Fingerprint: arrowio.Fingerprint(schema),
		Locations: []arrowio.Location{{Tier: arrowio.Hot, URI: uri}},
	}
}

// TestPeersResolve finds batches of two other processes, and none once their
// process is dead.
func TestPeersResolve(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var owners []*child
	var at []ownerReport
	for range 2 {
		c := start(t, "owner", childConfig{Dir: dir, ArenaBytes: 1 << 20, BatchRows: rows, StallMS: stallMS})
		var r ownerReport
		c.read(&r)
		owners, at = append(owners, c), append(at, r)
	}
	own := serve(t, func(c *handoff.ServerConfig) { c.Dir = dir })
	peers := handoff.NewPeers(handoff.PeersConfig{Dir: dir, Except: own.Path()})
	t.Cleanup(func() { _ = peers.Close() })
	for range 2 {
		for _, r := range at {
			for i, uri := range r.Handles {
				rec, err := peers.Resolve(t.Context(), refTo(uri))
				if err != nil {
					t.Fatal(err)
				}
				if v, err := value(rec); err != nil || v != int64(i+1) {
					t.Errorf("batch %d: %d, %v", i, v, err)
				}
				rec.Release()
			}
		}
	}
	if n := len(own.Status().Peers); n != 0 {
		t.Errorf("connected to itself %d times", n)
	}
	other := refTo(at[0].Handles[0])
	other.Rows++
	if _, err := peers.Resolve(t.Context(), other); !errors.Is(err, arrowio.ErrCorrupt) {
		t.Errorf("another batch than the ref says: %v", err)
	}
	for name, ref := range map[string]arrowio.Ref{
		"no location":    {Dataset: "d"},
		"a file":         {Dataset: "d", Locations: []arrowio.Location{{Tier: arrowio.Warm, URI: "file:///x"}}},
		"nobody's arena": refTo("shm://00112233445566778899aabbccddeeff/0+64.1"),
	} {
		if _, err := peers.Resolve(t.Context(), ref); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
	held, err := peers.Resolve(t.Context(), refTo(at[0].Handles[0]))
	if err != nil {
		t.Fatal(err)
	}
	owners[0].signal(syscall.SIGKILL)
	eventually(t, "the dead process's batches gone", func() bool {
		rec, err := peers.Resolve(t.Context(), refTo(at[0].Handles[1]))
		if err == nil {
			rec.Release()
		}
		return errors.Is(err, arrowio.ErrGone)
	})
	if v, err := value(held); err != nil || v != 1 {
		t.Errorf("held through its owner's death: %d, %v", v, err)
	}
	held.Release()
	rec, err := peers.Resolve(t.Context(), refTo(at[1].Handles[0]))
	if err != nil {
		t.Fatal(err)
	}
	rec.Release()
}

// TestValuesAreValidated: another process's frame is believed only if one asks
// for it.
func TestValuesAreValidated(t *testing.T) {
	o := serve(t, nil)
	schema := arrow.NewSchema([]arrow.Field{{Name: "s", Type: arrow.BinaryTypes.String}}, nil)
	b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer b.Release()
	b.Field(0).(*array.StringBuilder).Append("\xff\xfe")
	bad := b.NewRecordBatch()
	defer bad.Release()
	h, err := o.arena.Put(t.Context(), bad, nil)
	if err != nil {
		t.Fatal(err)
	}
	ref := arrowio.Ref{Dataset: "d", Locations: []arrowio.Location{{Tier: arrowio.Hot, URI: h.String()}}}
	for _, trusted := range []bool{false, true} {
		peers := handoff.NewPeers(handoff.PeersConfig{Dir: o.dir, Trusted: trusted})
		rec, err := peers.Resolve(t.Context(), ref)
		if trusted && err != nil || !trusted && !errors.Is(err, arrowio.ErrCorrupt) {
			t.Errorf("trusted %t: %v", trusted, err)
		}
		if err == nil {
			rec.Release()
		}
		if err := peers.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNothingIsCopied: the arrays that a consumer reads lie in the owner's memory.
func TestNothingIsCopied(t *testing.T) {
	_, at := startOwner(t, childConfig{})
	c := dial(t, at.Path, handoff.DialConfig{})
	l, err := c.Lease(t.Context(), handle(t, at.Handles[2]))
	if err != nil {
		t.Fatal(err)
	}
	slot := l.Bytes()
	rec, err := l.Batch()
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Release()
	xs := rec.Column(0).(*array.Int64).Int64Values()
	first, from := uintptr(unsafe.Pointer(unsafe.SliceData(xs))), uintptr(unsafe.Pointer(unsafe.SliceData(slot)))
	if first < from || first+uintptr(len(xs)*8) > from+uintptr(len(slot)) {
		t.Error("the numbers do not lie in the leased slot")
	}
}

func TestLook(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	if sv, err := handoff.Look(t.Context(), dir, handoff.DialConfig{}); err != nil || len(sv.Processes) != 0 {
		t.Errorf("without a directory: %+v, %v", sv, err)
	}
	c := start(t, "owner", childConfig{Dir: dir, ArenaBytes: 1 << 20, BatchRows: rows})
	var at ownerReport
	c.read(&at)
	silent := start(t, "owner", childConfig{Dir: dir, ArenaBytes: 1 << 20, BatchRows: rows})
	var silentAt ownerReport
	silent.read(&silentAt)
	silent.signal(syscall.SIGSTOP)
	leak, err := unix.MemfdCreate("stokehold-leak", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(leak) }()
	if err := unix.Fallocate(leak, 0, 0, 12345); err != nil {
		t.Fatal(err)
	}
	client := dial(t, at.Path, handoff.DialConfig{})
	l, err := client.Lease(t.Context(), handle(t, at.Handles[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Release()
	sv, err := handoff.Look(t.Context(), dir, handoff.DialConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if len(sv.Processes) != 1 || sv.Processes[0].PID != c.cmd.Process.Pid {
		t.Fatalf("processes: %+v", sv.Processes)
	}
	p := sv.Processes[0]
	if len(p.Arenas) != 1 || p.Arenas[0].Leases != 1 || p.Arenas[0].Used == 0 || p.Memory.Slots != 4 {
		t.Errorf("arenas: %+v, %+v", p.Arenas, p.Memory)
	}
	if len(p.Peers) != 1 || p.Peers[0].PID != os.Getpid() || p.Peers[0].Leases != 1 || p.Peers[0].State != handoff.Alive {
		t.Errorf("peers: %+v", p.Peers)
	}
	if len(sv.Silent) != 1 || sv.Silent[0].PID != silent.cmd.Process.Pid {
		t.Errorf("silent: %+v", sv.Silent)
	}
	find := func(name string, pid int) *handoff.Orphaned {
		for i, o := range sv.Unclaimed {
			if o.Name == name && slices.Contains(o.PIDs, pid) {
				return &sv.Unclaimed[i]
			}
		}
		return nil
	}
	if o := find("stokehold-leak", os.Getpid()); o == nil || o.Bytes != 16384 {
		t.Errorf("the leak: %+v", o)
	}
	if o := find("stokehold", silent.cmd.Process.Pid); o == nil || o.Bytes != 1<<20 {
		t.Errorf("the silent process's memory: %+v", o)
	}
	for _, o := range sv.Unclaimed {
		if o.Inode == p.Arenas[0].Inode {
			t.Errorf("claimed memory is unclaimed: %+v", o)
		}
	}
}

// TestStoppedOwnerGoesOn: an owner that was stopped blames nobody for its own
// silence, and takes nothing back that is still held.
func TestStoppedOwnerGoesOn(t *testing.T) {
	o, at := startOwner(t, childConfig{})
	c := start(t, "consumer", childConfig{})
	c.ask(nil, "dial", at.Path)
	c.ask(nil, "lease", at.Handles[0])
	o.signal(syscall.SIGSTOP)
	var r consumerReport
	eventually(t, "the loss noticed", func() bool { c.ask(&r, "report"); return r.Lost != "" })
	o.signal(syscall.SIGCONT)
	o.ask(nil, "drop", at.Handles[0])
	o.ask(nil, "fill")
	var now ownerReport
	if o.ask(&now, "report"); now.Leases != 1 || now.Killed != 0 {
		t.Errorf("the owner goes on with %+v", now)
	}
	if c.ask(&r, "report"); r.Torn != "" || r.Held != 1 {
		t.Errorf("the consumer: %+v", r)
	}
	c.ask(nil, "release")
	eventually(t, "the lease ended", func() bool { o.ask(&now, "report"); return now.Leases == 0 && now.Peers == 0 })
}

// TestLeasingAllocatesNothing measures the client alone, with the owner in
// another process, and both sides in this one.
func TestLeasingAllocatesNothing(t *testing.T) {
	measure := func(t *testing.T, path string, h shm.Handle) {
		c := dial(t, path, handoff.DialConfig{})
		once := func() {
			l, err := c.Lease(t.Context(), h)
			if err != nil {
				t.Fatal(err)
			}
			l.Release()
		}
		for range 300 { // until all entries and buffers have been used
			once()
		}
		if n := testing.AllocsPerRun(500, once); n != 0 {
			t.Errorf("%v allocations per lease and release", n)
		}
	}
	t.Run("client", func(t *testing.T) {
		_, at := startOwner(t, childConfig{StallMS: 60_000}) // without a beat in between
		measure(t, at.Path, handle(t, at.Handles[0]))
	})
	t.Run("both sides", func(t *testing.T) {
		o := serve(t, func(c *handoff.ServerConfig) { c.Heartbeat, c.StallTimeout = time.Minute, 2*time.Minute })
		measure(t, o.Path(), put(t, o.arena, 1))
	})
}

// BenchmarkLease is a lease and its release between two processes; the size of
// the slot must not matter.
func BenchmarkLease(b *testing.B) {
	for _, size := range []struct {
		name  string
		bytes int
	}{{"4KiB", 4 << 10}, {"16MiB", 16 << 20}} {
		b.Run(size.name, func(b *testing.B) {
			dir := filepath.Join(b.TempDir(), "run")
			o := start(b, "owner", childConfig{Dir: dir, ArenaBytes: int64(5 * (size.bytes + 4096)), BatchRows: size.bytes / 8})
			var at ownerReport
			o.read(&at)
			c := dial(b, at.Path, handoff.DialConfig{})
			h, err := arrowio.ParseSharedURI(at.Handles[0])
			if err != nil {
				b.Fatal(err)
			}
			lease := func() handoff.Lease {
				l, err := c.Lease(b.Context(), h)
				if err != nil {
					b.Fatal(err)
				}
				return l
			}
			b.Run("lease", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					lease().Release()
				}
			})
			b.Run("trusted batch", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					rec, err := lease().Batch(arrowio.Trusted())
					if err != nil {
						b.Fatal(err)
					}
					rec.Release()
				}
			})
		})
	}
}

var _ arrowio.Resolver = (*handoff.Peers)(nil)
