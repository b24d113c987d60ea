package deploy

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"github.com/stokehold/stokehold/models"
	"github.com/stokehold/stokehold/stages/train"
)

// loaded is a version ready to predict.
type loaded struct {
	version   models.Version
	predictor train.Predictor
	features  []string
}

// cache keeps the versions used last, and follows champions.
type cache struct {
	cfg ServerConfig

	mu       sync.Mutex
	byID     map[string]*list.Element // MODEL/ID -> element holding *loaded
	recent   *list.List               // most recent first
	champion map[string]string        // model -> version id, of watched models
	watched  map[string]bool
	ctx      context.Context // of the watches, which outlive requests; nil before start
	watches  sync.WaitGroup
}

func newCache(cfg ServerConfig) *cache {
	return &cache{
		cfg: cfg, byID: map[string]*list.Element{}, recent: list.New(),
		champion: map[string]string{}, watched: map[string]bool{},
	}
}

func (c *cache) start(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ctx = ctx
}

func (c *cache) wait() { c.watches.Wait() }

// get returns a version by id or unique prefix; "" is the champion.
func (c *cache) get(ctx context.Context, model, id string) (*loaded, error) {
	if id == "" {
		var err error
		if id, err = c.championOf(ctx, model); err != nil {
			return nil, err
		}
	}
	key := model + "/" + id
	c.mu.Lock()
	if e, ok := c.byID[key]; ok {
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*loaded), nil
	}
	c.mu.Unlock()
	v, err := c.cfg.Models.Get(ctx, model, id)
	if err != nil {
		return nil, err
	}
	artifact, err := c.cfg.Models.Artifact(ctx, v)
	if err != nil {
		return nil, err
	}
	p, err := c.cfg.Kinds.Load(v.Kind, artifact)
	if err != nil {
		return nil, fmt.Errorf("model %s version %s: %w", model, v.Short(), err)
	}
	m := &loaded{version: v, predictor: p, features: p.Features()}
	c.keep(m)
	return m, nil
}

// keep stores m under its full id: prefixes are resolved by the registry each
// time, since a prefix that is unique today may not be tomorrow.
func (c *cache) keep(m *loaded) {
	key := m.version.Model + "/" + m.version.ID
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byID[key]; ok {
		return
	}
	c.byID[key] = c.recent.PushFront(m)
	for c.recent.Len() > c.cfg.Cached {
		last := c.recent.Back()
		old := c.recent.Remove(last).(*loaded)
		delete(c.byID, old.version.Model+"/"+old.version.ID)
	}
}

// championOf asks the registry the first time and follows the alias from then on.
func (c *cache) championOf(ctx context.Context, model string) (string, error) {
	c.mu.Lock()
	id := c.champion[model]
	c.mu.Unlock()
	if id != "" {
		return id, nil
	}
	v, err := c.cfg.Models.Alias(ctx, model, models.Champion)
	if err != nil {
		return "", err
	}
	c.follow(model) //nolint:contextcheck // the watch outlives the request that began it
	return v.ID, nil
}

func (c *cache) follow(model string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil || c.watched[model] || len(c.watched) >= c.cfg.Watched {
		return // unwatched models are asked for each time
	}
	c.watched[model] = true
	ctx := c.ctx
	c.watches.Go(func() {
		err := c.cfg.Models.WatchAlias(ctx, model, models.Champion, func(v models.Version) {
			c.mu.Lock()
			c.champion[model] = v.ID
			c.mu.Unlock()
		})
		// Without the watch the last known champion would be served for ever.
		c.mu.Lock()
		delete(c.champion, model)
		delete(c.watched, model)
		c.mu.Unlock()
		if ctx.Err() == nil {
			c.cfg.Logger.Warn("champion is no longer followed, it is asked for each time", "model", model, "error", err)
		}
	})
}
