package stokehold

import (
	"context"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// partingTimeout is how long other processes have to give back what they read
// here when this one closes. What they hold on to stays good for them.
const partingTimeout = time.Second

// shareHot lets the other processes of this host read this one's hot tier, and
// returns what resolves batches from theirs; nil if Config.NoPeers.
func (a *App) shareHot() (arrowio.Resolver, error) {
	if a.cfg.NoPeers {
		return nil, nil
	}
	server, err := handoff.Serve(handoff.ServerConfig{
		Host: a.Hot, Dir: a.cfg.RuntimeDir, Logger: a.cfg.Log,
		// One process that stands still leaves the writers here half of their arena.
		MaxLeasedBytes: a.cfg.HotBytes / 2,
	})
	if err != nil {
		return nil, fmt.Errorf("share the hot tier with this host's other processes: %w: set RuntimeDir to a directory of your own, or NoPeers", err)
	}
	a.onClose(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, partingTimeout)
		defer cancel()
		if err := server.Close(ctx); err != nil {
			a.cfg.Log.WarnContext(ctx, "other processes still read batches of this one", "error", err)
		}
		return nil
	})
	peers := handoff.NewPeers(handoff.PeersConfig{Dir: a.cfg.RuntimeDir, Except: server.Path(), Logger: a.cfg.Log})
	a.onClose(func(context.Context) error { return peers.Close() })
	return peers, nil
}
