package worker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/stages/worker"
)

func pool(t *testing.T, cfg worker.Config) *worker.Pool {
	t.Helper()
	cfg.Backoff = time.Millisecond
	p, err := worker.StartPool(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

// TestPoolGrowsAndWaits runs three jobs in two children: two at once, the third
// when one of them has ended.
func TestPoolGrowsAndWaits(t *testing.T) {
	p := pool(t, worker.Config{Processes: 2})
	if err := p.Do(t.Context(), worker.Job{Stage: "write"}); err != nil || len(p.PIDs()) != 1 {
		t.Error(p.PIDs(), err)
	}
	var jobs sync.WaitGroup
	ctx, stop := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	running := make(chan struct{}, 2)
	for range 2 {
		jobs.Go(func() {
			err := p.Do(ctx, worker.Job{Stage: "obey", OnProgress: func(worker.Progress) error { running <- struct{}{}; return nil }})
			if !errors.Is(err, enough) {
				t.Error(err)
			}
		})
	}
	<-running
	<-running
	if n := len(p.PIDs()); n != 2 {
		t.Errorf("%d processes", n)
	}
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.Do(brief, worker.Job{Stage: "write"}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	third := make(chan error, 1)
	go func() { third <- p.Do(t.Context(), worker.Job{Stage: "write"}) }()
	stop(enough)
	jobs.Wait()
	if err := <-third; err != nil {
		t.Error(err)
	}
	if st := p.Stats(); st.Started != 2 || st.Jobs != 4 || st.Died != 0 {
		t.Errorf("%+v", st)
	}
	// A child that is killed is one failed job, the others know nothing of it.
	for _, pid := range p.PIDs() {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the pool is well again", func() bool {
		err := p.Do(t.Context(), worker.Job{Stage: "write"})
		if err != nil && !errors.Is(err, worker.ErrWorkerDied) {
			t.Fatal(err)
		}
		return err == nil
	})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Do(t.Context(), worker.Job{Stage: "write"}); !errors.Is(err, worker.ErrClosed) || len(p.PIDs()) != 0 {
		t.Error(p.PIDs(), err)
	}
}

// TestPoolClosedWhileAChildStarts leaves no process behind.
func TestPoolClosedWhileAChildStarts(t *testing.T) {
	before := descriptors(t)
	once := filepath.Join(t.TempDir(), "once")
	p := pool(t, worker.Config{Set: map[string]string{"WORKER_TEST_RAW": "slow second", "WORKER_TEST_ONCE": once}, CancelGrace: 10 * time.Millisecond})
	var jobs sync.WaitGroup
	for range 2 {
		jobs.Go(func() {
			if err := p.Do(t.Context(), worker.Job{Stage: "x"}); !errors.Is(err, worker.ErrClosed) {
				t.Error(err)
			}
		})
	}
	until(t, "a second child starts", func() bool {
		_, err := os.Stat(once + ".second")
		return err == nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	jobs.Wait()
	if n := len(p.PIDs()); n != 0 {
		t.Errorf("%d processes", n)
	}
	until(t, "descriptors are back", func() bool { return descriptors(t) == before })
}
