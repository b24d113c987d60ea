package tiers

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/stokehold/stokehold/arrowio"
)

// WarmBytes is how many bytes the batch files of this host's warm directory have.
// Each is looked at; a bounded number is in memory.
func (s *Store) WarmBytes(ctx context.Context) (int64, error) {
	var sum int64
	err := s.warm.walk(func(o Orphan) error {
		sum += o.Bytes
		return ctx.Err()
	})
	if err != nil {
		return 0, &Error{Op: "measure the warm directory", Err: err}
	}
	return sum, nil
}

// HasWarm reports whether this host's warm directory has the copy that l names. The
// warm copy of a batch may be on another host.
func (s *Store) HasWarm(ref arrowio.Ref, l arrowio.Location) bool {
	path, err := s.warm.path(ref.Dataset, ref.Sequence, l.SHA256)
	if err != nil {
		return false
	}
	_, err = os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// ArenaBytes is how much of this process's arena is taken, of how much; 0, 0
// without an arena.
func (s *Store) ArenaBytes() (used, size int64) {
	if s.hot.arena == nil {
		return 0, 0
	}
	size = s.hot.arena.Size()
	return size - s.hot.arena.Stats().Free, size
}

// TrimHot gives up hot copies, the oldest first and none that is being read, until
// no more than most bytes of the arena are taken. They have a warm copy, or had one
// when they were written. It returns how many went.
func (s *Store) TrimHot(most int64) int {
	n := 0
	for s.hot.arena != nil {
		if used, _ := s.ArenaBytes(); used <= most || !s.hot.evict() {
			break
		}
		n++
	}
	return n
}
