package shm_test

import (
	"errors"
	"os"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

func TestAdoptSealedSegment(t *testing.T) {
	before := descriptors(t)
	rec := floats(t, 500)
	frame, err := arrowio.Prepare(rec)
	if err != nil {
		t.Fatal(err)
	}
	seg, err := shm.NewSegment(frame.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := frame.EncodeTo(seg.Bytes(), nil); err != nil {
		t.Fatal(err)
	}
	fd, err := seg.Seal()
	if err != nil {
		t.Fatal(err)
	}
	sent, err := unix.Dup(fd) // as if it had come over a socket
	if err != nil {
		t.Fatal(err)
	}
	size := seg.Size()
	seg.Close()
	a, h, err := shm.Adopt(sent, size, frame.Size())
	if err != nil {
		t.Fatal(err)
	}
	var host shm.Host
	if err := host.Add(a); err != nil {
		t.Fatal(err)
	}
	lease, err := host.Open(h.String(), "reader")
	if err != nil {
		t.Fatal(err)
	}
	got, err := lease.Batch()
	if err != nil {
		t.Fatal(err)
	}
	for _, col := range got.Columns() {
		for _, b := range col.Data().Buffers() {
			if b != nil && b.Len() > 0 && !a.Contains(b.Bytes()) {
				t.Error("a buffer was copied")
			}
		}
	}
	if _, err := a.Loan(t.Context(), 1); !errors.Is(err, shm.ErrReadOnly) {
		t.Error(err)
	}
	if err := host.Drop(h.String()); err != nil {
		t.Fatal(err)
	}
	got.Release()
	if _, err := host.Open(h.String(), "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// memfd makes a memfd as a peer might, well or badly.
func memfd(t *testing.T, size int64, seals int, allocate bool) int {
	t.Helper()
	fd, err := unix.MemfdCreate("t", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	if allocate {
		if err := unix.Fallocate(fd, 0, 0, size); err != nil {
			t.Fatal(err)
		}
	}
	if seals != 0 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func TestAdoptRefuses(t *testing.T) {
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	unix.Close(pipe[1])
	file, err := unix.Open(t.TempDir()+"/f", unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		fd           int
		size, length int64
	}{
		"pipe":             {pipe[0], page, page},
		"file":             {file, page, page},
		"directory":        {dir, page, page},
		"device":           {null, page, page},
		"unsealed":         {memfd(t, page, 0, true), page, page},
		"may be written":   {memfd(t, page, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW, true), page, page},
		"future writes":    {memfd(t, page, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE, true), page, page},
		"may shrink":       {memfd(t, page, unix.F_SEAL_WRITE|unix.F_SEAL_GROW, true), page, page},
		"smaller":          {memfd(t, page, all, true), 2 * page, 2 * page},
		"larger":           {memfd(t, 2*page, all, true), page, page},
		"with holes":       {memfd(t, 16*page, all, false), 16 * page, page},
		"length over size": {memfd(t, page, all, true), page, page + 1},
		"negative length":  {memfd(t, page, all, true), page, -1},
		"no size":          {memfd(t, page, all, true), 0, 0},
		"closed":           {1 << 20, page, page},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, _, err := shm.Adopt(c.fd, c.size, c.length); !errors.Is(err, shm.ErrSeals) {
				t.Error(err)
			}
			unix.Close(c.fd)
		})
	}
}

func TestViewOfArena(t *testing.T) {
	a := arena(t, 4*page)
	l := loan(t, a, 100)
	copy(l.Bytes(), "seen through another mapping")
	h := l.Publish()
	var view *shm.View
	err := a.WithFD(func(fd int) (err error) {
		if _, err := unix.Mmap(fd, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
			t.Error("another process could map the arena writable")
		}
		if _, err := unix.Pwrite(fd, []byte("x"), 0); err == nil {
			t.Error("another process could write to the arena")
		}
		if err := unix.Ftruncate(fd, 0); err == nil {
			t.Error("another process could truncate the arena")
		}
		if _, err := shm.OpenView(fd, a.ID(), a.Size()+page); !errors.Is(err, shm.ErrSeals) {
			t.Error(err)
		}
		view, err = shm.OpenView(fd, a.ID(), a.Size())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	b, err := view.Bytes(h)
	if err != nil || string(b[:4]) != "seen" || !view.Contains(b) {
		t.Error(err)
	}
	for _, bad := range []shm.Handle{
		{Arena: "00", Length: 1}, {Arena: a.ID(), Offset: -1, Length: 1}, {Arena: a.ID(), Offset: 1 << 62, Length: 1 << 62},
		{Arena: a.ID(), Offset: 4 * page, Length: 1}, {Arena: a.ID(), Offset: 0, Length: 0},
	} {
		if _, err := view.Bytes(bad); !errors.Is(err, arrowio.ErrGone) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// TestPublishedBytesAreReadOnly holds that not even the owner can change what
// was published through the lease's bytes.
func TestPublishedBytesAreReadOnly(t *testing.T) {
	a := arena(t, page)
	lease, err := a.Lease(loan(t, a, 64).Publish(), "x")
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() == nil {
			t.Error("wrote to a published slot")
		}
	}()
	lease.Bytes()[0] = 1
}
