package prefetch

import (
	"context"
	"errors"
	"iter"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

// Nearer brings batches nearer to this process. *tiers.Store implements it.
type Nearer interface {
	// Promote leaves a warm copy of a batch that is in the cold tier alone, and reports
	// whether there is one now: there may be no room for it, or it may not be.
	Promote(ctx context.Context, ref arrowio.Ref) (warm bool, err error)
	// OpenAhead opens a batch in the arena if there is room now, else elsewhere.
	OpenAhead(ctx context.Context, ref arrowio.Ref) (*tiers.Batch, error)
}

// Prepare brings the batches of refs nearer for a reader that has not begun: in their
// order from the cold tier to the warm one, as far as Nearer has room there, and
// hotBytes of the first of them into the arena, where they stay until somebody needs
// the memory. It returns when there is room for no more, when refs end, or with the
// error of ctx or refs; a batch that cannot be read is left to who needs it. stats is
// added to; nil: nobody wants to know.
func Prepare(ctx context.Context, to Nearer, refs iter.Seq2[arrowio.Ref, error], hotBytes int64, stats *Stats) error {
	if stats == nil {
		stats = &Stats{}
	}
	room := true // in the warm tier
	for ref, err := range refs {
		if err != nil {
			return err
		}
		moved := false
		if _, warm := ref.In(arrowio.Warm); !warm && room {
			if room, err = to.Promote(ctx, ref); err != nil && ctx.Err() != nil {
				return err
			}
			moved = room && err == nil
		}
		if hot := ref.BodyBytes <= hotBytes; hot {
			b, err := to.OpenAhead(ctx, ref)
			if err != nil && (ctx.Err() != nil || !errors.Is(err, tiers.ErrNoTierHas) && !errors.Is(err, tiers.ErrNoArena)) {
				return err
			}
			hotBytes -= ref.BodyBytes
			if err != nil || b.Lease == nil {
				hotBytes = 0
			}
			if err == nil {
				moved = moved || b.Lease != nil
				b.Release()
			}
		} else {
			hotBytes = 0
		}
		if moved {
			stats.prepared(ref.BodyBytes)
		}
		if hotBytes == 0 && !room {
			return nil
		}
	}
	return nil
}
