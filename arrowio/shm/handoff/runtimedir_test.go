package handoff_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// TestDefaultDirectoryGoesWithItsLastServer holds that nothing is left behind, and
// that a server that starts while another removes the directory finds a way.
func TestDefaultDirectoryGoesWithItsLastServer(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 50 {
				s, err := handoff.Serve(handoff.ServerConfig{Host: &shm.Host{}})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := os.Stat(s.Path()); err != nil {
					t.Error(err)
				}
				if err := s.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	if _, err := os.Stat(handoff.RuntimeDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

func TestNamedDirectoryStays(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run")
	s, err := handoff.Serve(handoff.ServerConfig{Host: &shm.Host{}, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
