package stokehold

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"time"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/bundle"
)

// maxRefusals is how many refusals wait to be told; more are in the log and in the
// status alone.
const maxRefusals = 16

// tellRefusals publishes what was refused, and will be, until the App closes. The
// manager is not held up meanwhile: it may be what lets the event through.
func (a *App) tellRefusals() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case r := <-a.refusals:
				if err := a.tellRefusal(ctx, r); err != nil && ctx.Err() == nil {
					a.cfg.Log.WarnContext(ctx, "policies: that a bundle is refused could not be published", "bundle", r.Name, "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	a.onClose(func(context.Context) error { cancel(); <-done; return nil })
}

// refused takes a refusal over from the manager.
func (a *App) refused(r bundle.Refusal) {
	select {
	case a.refusals <- r:
	default: // it is logged
	}
}

func (a *App) tellRefusal(ctx context.Context, r bundle.Refusal) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	data := events.PolicyRefused{
		Bundle: r.Name, Revision: int64(r.Revision), Process: fmt.Sprintf("%s/%d", host, os.Getpid()), InForce: r.InForce, Reason: r.Err.Error(),
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s", data.Process, data.Reason))
	id := fmt.Sprintf("policy/%s/%d/refused/%x", r.Name, r.Revision, sum[:8])
	ev, err := events.New(events.TypePolicyRefused, "/stokehold/policies", r.Name, id, time.Now(), data)
	if err != nil {
		return err
	}
	return a.Bus.Publish(ctx, ev)
}
