package stokehold

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/policy"
	"github.com/stokehold/stokehold/workflows"
)

// Tiering says where batches belong, and how fast they go there.
type Tiering struct {
	// Policies are files or directories of tier policies (package tiers/policy), read
	// again as they change. Without any, batches move when somebody asks for it.
	Policies []string
	// WarmBytes is the quota of the warm directory in bytes, which the policies'
	// watermarks and pressure refer to. A quota is no wall: what is written is kept, and
	// then room is made. 0: none.
	WarmBytes int64
	// Every is the time between passes over the catalog; default one minute. The
	// watermarks are looked after every 5 s, or this if it is less.
	Every time.Duration
	// Grace is how long what a policy evicts stays on the disk; default one minute.
	Grace time.Duration
	// MoveBytesPerSecond and MoveConcurrency bound what this process's migrations take
	// together; see tiers.Config.
	MoveBytesPerSecond int64
	MoveConcurrency    int
	// ColdCodec is how batches are written to the cold tier: tiers.CodecParquet, the
	// default, or tiers.CodecArrow.
	ColdCodec string
	// SweepEvery is the time between removals of files and objects that the catalog
	// does not name, and of uploads that never ended; default one hour. SweepGrace is
	// how old they must be, to which two hours are added; default 24 hours.
	SweepEvery time.Duration
	SweepGrace time.Duration
}

const (
	defaultSweepEvery = time.Hour
	defaultSweepGrace = 24 * time.Hour
	keepEvery         = 5 * time.Second
	// minSweepGrace exceeds the time from a file's writing to its commit.
	minSweepGrace = time.Minute
)

func (t Tiering) withDefaults() Tiering {
	if t.Every == 0 {
		t.Every = policy.DefaultEvery
	}
	if t.SweepEvery == 0 {
		t.SweepEvery = defaultSweepEvery
	}
	if t.SweepGrace == 0 {
		t.SweepGrace = defaultSweepGrace
	}
	return t
}

func (t Tiering) validate() []error {
	var faults []error
	if t.WarmBytes < 0 || t.MoveBytesPerSecond < 0 || t.MoveConcurrency < 0 {
		faults = append(faults, fmt.Errorf("tiers: a quota of %d bytes, moves of %d bytes/s, %d at once: want numbers above 0, or 0 for none and the defaults", t.WarmBytes, t.MoveBytesPerSecond, t.MoveConcurrency))
	}
	if t.Every < time.Second || t.Grace < 0 {
		faults = append(faults, fmt.Errorf("tiers: passes every %v with a grace of %v: want at least 1s, and no time below 0", t.Every, t.Grace))
	}
	if t.SweepEvery < time.Second || t.SweepGrace < minSweepGrace {
		faults = append(faults, fmt.Errorf("tiers: sweeps every %v of what is older than %v: want at least 1s and %v", t.SweepEvery, t.SweepGrace, minSweepGrace))
	}
	return faults
}

// WithTierPolicies adds the *.yaml files of fsys: tier policies that come with the
// program, beside Config.Tiers.Policies.
func WithTierPolicies(fsys fs.FS) Option {
	return func(o *options) { o.tierPolicies = append(o.tierPolicies, fsys) }
}

// openTierPolicies reads the tier policies. Faulty ones are refused here; later they
// leave the last good ones in force.
func (a *App) openTierPolicies(o options) error {
	var more []governance.Source
	for _, fsys := range o.tierPolicies {
		srcs, err := governance.ReadFS(fsys, "*.yaml")
		if err != nil {
			return fmt.Errorf("tier policies of the program: %w", err)
		}
		more = append(more, srcs...)
	}
	var err error
	if a.TierPolicies, err = policy.Open(a.cfg.Log, more, a.cfg.Tiers.Policies...); err != nil {
		return fmt.Errorf("tier policies: %w", err)
	}
	return nil
}

// planner plans by the tier policies; nil without any.
func (a *App) planner() workflows.TierPlanner {
	if a.Store == nil || a.TierPolicies.Set().Len() == 0 {
		return nil
	}
	t := a.cfg.Tiers
	return &policy.Runner{Store: a.Store, Policies: a.TierPolicies.Set, Quota: t.WarmBytes, Every: t.Every, Grace: t.Grace, Log: a.cfg.Log}
}

// tend starts what looks after the tiers while this process hosts pipelines: the
// policies' workflow, the watermarks of this process, and the sweeps.
func (a *App) tend(ctx context.Context) error {
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	a.onClose(func(ctx context.Context) error {
		stop()
		ended := make(chan struct{})
		go func() { defer close(ended); wg.Wait() }()
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the tiers are still being looked after: %w", context.Cause(ctx))
		}
	})
	if a.TierPolicies.Set().Len() > 0 {
		if _, err := workflows.StartTierPolicies(ctx, a.Temporal, workflows.StartOptions{TaskQueue: a.cfg.Temporal.TaskQueue}); err != nil {
			return err
		}
		keeper := &policy.Keeper{
			Store: a.Store, Policies: a.TierPolicies.Set, Quota: a.cfg.Tiers.WarmBytes, Every: min(keepEvery, a.cfg.Tiers.Every),
			Evict: a.evict, Log: a.cfg.Log,
		}
		if !a.durable() && keeper.Quota > 0 {
			a.cfg.Log.WarnContext(ctx, "nothing leaves the warm tier: the object store is not declared to keep what it acknowledged (Config.S3.Syncs), or there is none", "quota", keeper.Quota)
			keeper.Quota = 0
		}
		wg.Go(func() { keeper.Run(working) })
	}
	wg.Go(func() { a.sweeps(working) })
	return nil
}

// durable reports whether a batch may be in the cold tier alone.
func (a *App) durable() bool {
	s, ok := a.cold.(tiers.Syncer)
	return ok && s.Syncs()
}

// evict starts the migration of a task by watermarks.
func (a *App) evict(ctx context.Context, t policy.Task) (wait func(context.Context, func()) error, err error) {
	id, err := a.Migrate(ctx, workflows.TierMigration(t, a.cfg.Tiers.Grace))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, parked func()) error {
		_, err := workflows.AwaitMigration(ctx, a.Temporal, id, func(string) { parked() })
		if errors.Is(err, workflows.ErrMoveRefused) {
			return &policy.RefusedError{Parts: workflows.RefusedTasks(t, err), Err: err}
		}
		return err
	}, nil
}

// busyPause is how soon a sweep that migrations kept from beginning is tried again.
const busyPause = time.Minute

// sweeps removes what nothing names, again and again, beginning at a moment that
// differs from process to process.
func (a *App) sweeps(ctx context.Context) {
	pause := time.Duration(rand.Int64N(int64(a.cfg.Tiers.SweepEvery))) + 1 //nolint:gosec // spreads load
	for {
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		pause = a.cfg.Tiers.SweepEvery
		swept, err := a.Sweep(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, tiers.ErrBusy):
			pause = min(pause, busyPause)
		case err != nil:
			a.cfg.Log.ErrorContext(ctx, "sweep of the tiers", "error", err)
		case swept != tiers.SweptObjects{}:
			a.cfg.Log.InfoContext(ctx, "sweep of the tiers", "removed", swept.Removed, "bytes", swept.Bytes, "uploads", swept.Partial)
		}
	}
}

// Sweep removes files of this process's warm directory and objects of the cold tier
// that the catalog does not name and that are older than Config.Tiers.SweepGrace and
// two hours, and what uploads that never ended have left. A bucket that another
// system has taken over since gives tiers.ErrOwned. Work does it from time to time.
func (a *App) Sweep(ctx context.Context) (done tiers.SweptObjects, err error) {
	err = a.Store.Collect(ctx, a.cfg.Tiers.SweepGrace, true, func(o tiers.Orphan) error {
		done.Removed++
		done.Bytes += o.Bytes
		a.cfg.Log.InfoContext(ctx, "removed what the catalog does not name", "tier", o.Tier, "name", o.Name, "bytes", o.Bytes)
		return nil
	})
	if p, ok := a.cold.(tiers.PartialSweeper); ok && err == nil {
		done.Partial, err = p.SweepPartial(ctx, a.cfg.Tiers.SweepGrace+tiers.ClockStep)
	}
	return done, err
}
