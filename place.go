package stokehold

import (
	"context"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/workflows"
)

// sendTo sees to it that a batch which governance routes to another tier gets
// there: by a migration, which is durable and the same if it is asked for again.
func (a *App) sendTo(ctx context.Context, ref arrowio.Ref, tier arrowio.Tier) error {
	_, err := a.Migrate(ctx, workflows.Migration{
		Dataset: ref.Dataset, From: ref.Sequence, To: ref.Sequence + 1, Tier: tier, Reason: "routed by governance",
	})
	return err
}
