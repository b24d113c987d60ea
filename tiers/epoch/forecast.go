package epoch

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/stokehold/stokehold/tiers"
)

// Announcer is an optional power of a Store, which *tiers.Store has: it tells who
// manages the tiers what a reader comes to.
type Announcer interface {
	Announce(dataset, owner string, reads tiers.Reads) *tiers.Announced
}

// visits is an epoch as its reader announces it: tiers.Reads.Order.
type visits struct {
	Order   Order  `json:"order"`
	Epoch   uint64 `json:"epoch"`
	From    uint64 `json:"from,omitempty"`
	Batches uint64 `json:"batches"`
}

// announce tells what a loop from a position on comes to.
func (d *Dataset) announce(from Position) *tiers.Announced {
	to, ok := d.store.(Announcer)
	if !ok || from.Place >= d.batches {
		return nil
	}
	order, err := json.Marshal(visits{d.cfg.Order, from.Epoch, d.cfg.From, d.batches})
	if err != nil {
		return nil
	}
	at := from.Place
	if d.cfg.BatchRows == 0 {
		at = min(from.Next, d.batches-1)
	}
	return to.Announce(d.name, "", tiers.Reads{At: at, To: d.batches, Order: order})
}

// Forecast returns what estimates when a reader comes to a batch, from what it has
// announced; ok is false if it does not. One that reads in epochs is taken to go on
// with the next when one is over: of those the catalog knows nothing. The error says
// what cannot be understood.
func Forecast(r tiers.Reads) (until func(seq uint64) (next time.Duration, ok bool), err error) {
	if r.Order == nil {
		return r.Until, nil
	}
	var v visits
	if err := json.Unmarshal(r.Order, &v); err != nil {
		return nil, fmt.Errorf("%w: an announced order: %w", ErrConfig, err)
	}
	if err := v.Order.check(); err != nil {
		return nil, err
	}
	return func(seq uint64) (time.Duration, bool) {
		if seq < v.From || seq-v.From >= v.Batches {
			return 0, false
		}
		i := seq - v.From
		if place := v.Order.Place(v.Epoch, v.Batches, i); place >= r.At {
			return r.After(float64(place) - float64(r.At)), true
		}
		left := float64(v.Batches) - float64(min(r.At, v.Batches))
		return r.After(left + float64(v.Order.Place(v.Epoch+1, v.Batches, i))), true
	}, nil
}
