package stages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
	"github.com/stokehold/stokehold/tiers/prefetch"
)

// Upcoming is an input of a stage that has not begun.
type Upcoming struct {
	Stage string  `json:"stage"`
	Input Binding `json:"input"`
}

// Forecaster is an optional power of a Stage that does not read its inputs from their
// start: it says from its parameters which batches of an input it will read, so that
// they can be brought nearer before it begins. task has the run and the parameters
// (Decode) and nothing else. A wrong forecast costs time and changes nothing; none is
// an error.
type Forecaster interface {
	Forecast(task *Task, input Binding) (from, to uint64, err error)
}

// prepare brings nearer what later stages of the run will read, while this one works.
// stop ends it, and waits until it has.
func (r *Runtime) prepare(ctx context.Context, d *runDriver) (stop func()) {
	if r.Ahead.Off || len(d.a.Upcoming) == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	var told []*tiers.Announced // until the stage ends, however soon there is no room for more
	running.Go(func() {
		room := r.aheadBytes() / 2
		for _, next := range d.a.Upcoming {
			// One stage of the run at a time: those that work side by side know of the same.
			key := fmt.Sprint(d.a.Run, "/", next.Stage, "/", next.Input.Name)
			if _, other := r.ahead.preparing.LoadOrStore(key, true); other {
				continue
			}
			err := r.prepareOne(ctx, d, next, room/int64(len(d.a.Upcoming)), func(reads tiers.Reads) {
				reads.Later = true
				told = append(told, d.rt.Store.Announce(next.Input.Dataset, d.a.Run+"/"+next.Stage, reads))
			})
			r.ahead.preparing.Delete(key)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				d.log.DebugContext(ctx, "what a later stage reads is not brought nearer", "later", next.Stage, "dataset", next.Input.Dataset, "error", err)
			}
		}
	})
	return func() {
		cancel()
		running.Wait()
		for _, a := range told {
			a.End()
		}
	}
}

func (r *Runtime) prepareOne(ctx context.Context, d *runDriver, next Upcoming, hotBytes int64, announce func(tiers.Reads)) error {
	from, to, err := d.forecast(next)
	if err != nil {
		return err
	}
	if from == Start {
		refs := r.Store.ReadingAppended(next.Input.Dataset, d.a.Run, next.Input.Name).Refs(ctx)
		return prefetch.Prepare(ctx, r.Store, fromFirst(refs, announce), hotBytes, d.ahead)
	}
	announce(tiers.Reads{At: from, To: to})
	head, err := r.Store.Head(ctx, next.Input.Dataset)
	if err != nil {
		return err
	}
	reading := r.Store.Reading(next.Input.Dataset, from, min(to, head.Next)) // what is not there is not waited for
	return prefetch.Prepare(ctx, r.Store, reading.Refs(ctx), hotBytes, d.ahead)
}

// fromFirst announces a reader of all from the first ref on.
func fromFirst(refs iter.Seq2[arrowio.Ref, error], announce func(tiers.Reads)) iter.Seq2[arrowio.Ref, error] {
	return func(yield func(arrowio.Ref, error) bool) {
		named := false
		for ref, err := range refs {
			if err == nil && !named {
				named = true
				announce(tiers.Reads{At: ref.Sequence, To: tiers.End})
			}
			if !yield(ref, err) {
				return
			}
		}
	}
}

// forecast says which batches a later stage will read.
func (d *runDriver) forecast(next Upcoming) (from, to uint64, err error) {
	defer func() {
		if p := recover(); p != nil { // it asked the task for more than it has
			err = fmt.Errorf("forecast of %s: %v", next.Stage, p)
		}
	}()
	var s Stage
	var params json.RawMessage
	if d.hooks.Stage != nil {
		s, params = d.hooks.Stage(next.Stage)
	}
	if f, ok := s.(Forecaster); ok {
		a := d.a
		a.Stage, a.Params = next.Stage, params
		if from, to, err = f.Forecast(a.task(d.log, nil), next.Input); err == nil && from >= to {
			err = errors.New("it reads none")
		}
		return from, to, err
	}
	if next.Input.Bounded {
		return Start, tiers.End, nil
	}
	return 0, tiers.End, nil
}
