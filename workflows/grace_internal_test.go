package workflows

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/testsuite"

	"github.com/stokehold/stokehold/internal/clocktest"
	"github.com/stokehold/stokehold/tiers"
)

// dropping notes when batches are dropped.
type dropping struct{ at time.Time }

func (*dropping) MigrateBatch(context.Context, string, uint64) error { return nil }
func (*dropping) CopyBatch(context.Context, tiers.Migration) error   { return nil }
func (d *dropping) DropBatch(context.Context, tiers.Migration) error { d.at = time.Now(); return nil }

// A wall clock that is set by an hour while a grace passes makes it neither shorter nor
// longer; nor does what an attempt before has waited count twice.
func TestGraceWhileTheClockIsSet(t *testing.T) {
	const grace = 200 * time.Millisecond
	for name, by := range map[string]time.Duration{"forward": time.Hour, "back": -time.Hour} {
		for before, waited := range map[string]time.Duration{"the first attempt": 0, "a later attempt": grace / 2} {
			t.Run(name+", "+before, func(t *testing.T) {
				var asked atomic.Int64
				mover := &dropping{}
				a := &activities{migrator: mover, now: func() time.Time {
					if asked.Add(1) == 1 {
						return time.Now()
					}
					return clocktest.Now(by) // after the grace has begun
				}}
				env := (&testsuite.WorkflowTestSuite{}).NewTestActivityEnvironment()
				env.RegisterActivityWithOptions(a.drop, activity.RegisterOptions{Name: dropActivity})
				if waited > 0 {
					env.SetHeartbeatDetails(dropProgress{Waited: waited})
				}
				begun := time.Now()
				if _, err := env.ExecuteActivity(dropActivity, Migration{Dataset: "d", To: 1, Evict: true, Grace: grace}); err != nil {
					t.Fatal(err)
				}
				if took := mover.at.Sub(begun); took < grace-waited {
					t.Errorf("dropped after %v", took)
				}
			})
		}
	}
}
