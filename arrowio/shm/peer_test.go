package shm_test

import (
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
)

// tokens collects what a Peer's freed is told.
type tokens struct {
	mu  sync.Mutex
	all []uint64
}

func (s *tokens) add(token uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, token)
}

func (s *tokens) equal(t *testing.T, want ...uint64) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.all, want) {
		t.Errorf("freed %v, want %v", s.all, want)
	}
}

// theirs makes an arena and adopts it as if it were another process's.
func theirs(t *testing.T, size int64, freed func(uint64)) (*shm.Arena, *shm.Peer) {
	t.Helper()
	a := arena(t, size)
	var peer *shm.Peer
	err := a.WithFD(func(fd int) error {
		sent, err := unix.Dup(fd) // as if it had come over a socket
		if err == nil {
			peer, err = shm.AdoptArena(sent, a.Size(), freed)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a, peer
}

func TestPeerSlots(t *testing.T) {
	before := descriptors(t)
	var freed tokens
	a, peer := theirs(t, 4*page, freed.add)
	at, handles := peer.Arena(), []shm.Handle{}
	for token := range uint64(3) {
		frame, err := arrowio.Encode(floats(t, 10), nil)
		if err != nil {
			t.Fatal(err)
		}
		l := loan(t, a, int64(len(frame)))
		copy(l.Bytes(), frame)
		h := l.Publish()
		mine, err := peer.Publish(token, h.Offset, h.Length)
		if err != nil || mine.Arena == h.Arena {
			t.Fatal(mine, err)
		}
		handles = append(handles, mine)
	}
	if s := at.Stats(); s.Slots != 3 || s.Published != 3 || s.Capacity != 4*page || !at.Shared() || at.Adopted() {
		t.Errorf("%+v", s)
	}
	lease, err := at.Lease(handles[1], "reader")
	if err != nil {
		t.Fatal(err)
	}
	rec, err := lease.Batch()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range handles[:2] {
		if err := at.Drop(h); err != nil {
			t.Error(err)
		}
	}
	freed.equal(t, 0) // 1 is being read
	if _, err := at.Lease(handles[0], "late"); !errors.Is(err, arrowio.ErrGone) {
		t.Error(err)
	}
	// A slot that is free may come again, under another generation.
	again, err := peer.Publish(7, handles[0].Offset, handles[0].Length)
	if err != nil || again == handles[0] {
		t.Error(again, err)
	}
	if err := at.Drop(again); err != nil {
		t.Error(err)
	}
	if _, err := at.Loan(t.Context(), 1); !errors.Is(err, shm.ErrReadOnly) {
		t.Error(err)
	}

	// The other process is gone: nothing new, what is there stays.
	ended := 0
	at.OnEnd(func() { ended++ })
	peer.Retire()
	peer.Retire()
	if _, err := peer.Publish(9, 0, page); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
	rec.Release()
	freed.equal(t, 0, 7, 1)
	if ended != 0 || at.Stats().Arenas != 1 {
		t.Error("ended with a slot left")
	}
	if err := at.Drop(handles[2]); err != nil {
		t.Error(err)
	}
	freed.equal(t, 0, 7, 1, 2)
	if s := at.Stats(); ended != 1 || s.Arenas != 0 || s.Slots != 0 || s.Used != 0 {
		t.Errorf("%d, %+v", ended, s)
	}
	at.OnEnd(func() { ended++ })
	if ended != 2 {
		t.Error("OnEnd after the end was not called")
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if n := descriptors(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestPeerRefusesSlots(t *testing.T) {
	_, peer := theirs(t, 4*page, func(uint64) {})
	defer peer.Retire()
	if _, err := peer.Publish(1, page, 100); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string][2]int64{
		"negative offset": {-64, 64}, "no length": {0, 0}, "negative length": {0, -1}, "unaligned": {8, 64}, "past the end": {4 * page, 64},
		"over the end": {4*page - 64, 65}, "overflow": {1 << 62, 1<<63 - 1}, "taken": {page, 64},
	} {
		if _, err := peer.Publish(2, s[0], s[1]); !errors.Is(err, shm.ErrSlot) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A host that is closed closes it too, and frees what is left.
	var host shm.Host
	if err := host.Add(peer.Arena()); err != nil {
		t.Fatal(err)
	}
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Publish(3, 0, 64); !errors.Is(err, shm.ErrClosed) {
		t.Error(err)
	}
}

func TestAdoptArenaRefuses(t *testing.T) {
	const all = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_FUTURE_WRITE
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fd   int
		size int64
	}{
		"device": {null, page}, "directory": {dir, page}, "closed": {1 << 20, page}, "no size": {memfd(t, page, all, true), 0}, "part of a page": {memfd(t, page+64, all, true), page + 64},
		"no seals": {memfd(t, page, 0, true), page}, "may shrink": {memfd(t, page, unix.F_SEAL_GROW|unix.F_SEAL_FUTURE_WRITE, true), page},
		"may be mapped writable": {memfd(t, page, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK, true), page}, "smaller": {memfd(t, page, all, true), 2 * page},
		"larger": {memfd(t, 2*page, all, true), page}, "with holes": {memfd(t, 16*page, all, false), 16 * page},
	} {
		if _, err := shm.AdoptArena(c.fd, c.size, func(uint64) {}); !errors.Is(err, shm.ErrSeals) {
			t.Errorf("%s: %v", name, err)
		}
		unix.Close(c.fd)
	}
}
