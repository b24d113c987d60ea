package tiers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxPins bounds the pins of one dataset.
const maxPins = 256

// Pin keeps batches From..To-1 of a dataset in the warm tier. A legal hold also
// keeps them from expiring, whatever any policy says.
type Pin struct {
	From   uint64    `json:"from"`
	To     uint64    `json:"to"` // exclusive; End: those to come, too
	Hold   bool      `json:"hold,omitempty"`
	Reason string    `json:"reason,omitempty"`
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at"`
}

func (p Pin) String() string {
	kind := "pin"
	if p.Hold {
		kind = "legal hold"
	}
	to := "on"
	if p.To != End {
		to = fmt.Sprintf("to %d", p.To-1)
	}
	s := fmt.Sprintf("%s on batches %d %s", kind, p.From, to)
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return s
}

type pinRecord struct {
	Pins []Pin `json:"pins"`
}

// Pin adds a pin; one on the same batches and of the same kind is replaced.
func (s *Store) Pin(ctx context.Context, dataset string, p Pin) error {
	err := s.changePins(ctx, dataset, func(pins []Pin) ([]Pin, error) {
		if p.From >= p.To {
			return nil, fmt.Errorf("%w: batches %d to %d", ErrNotFound, p.From, p.To)
		}
		pins = slices.DeleteFunc(pins, func(o Pin) bool { return o.From == p.From && o.To == p.To && o.Hold == p.Hold })
		if len(pins) == maxPins {
			return nil, fmt.Errorf("%w: a dataset has at most %d pins", ErrTooLarge, maxPins)
		}
		return append(pins, p), nil
	})
	if err != nil {
		return &Error{Op: "pin", Dataset: dataset, Err: err}
	}
	return nil
}

// Unpin removes the pins, or with hold the legal holds, that lie within
// from..to-1, and returns how many there were.
func (s *Store) Unpin(ctx context.Context, dataset string, from, to uint64, hold bool) (n int, err error) {
	err = s.changePins(ctx, dataset, func(pins []Pin) ([]Pin, error) {
		before := len(pins)
		pins = slices.DeleteFunc(pins, func(p Pin) bool { return p.Hold == hold && p.From >= from && p.To <= to })
		n = before - len(pins)
		return pins, nil
	})
	if err != nil {
		return 0, &Error{Op: "unpin", Dataset: dataset, Err: err}
	}
	return n, nil
}

func (s *Store) changePins(ctx context.Context, dataset string, change func([]Pin) ([]Pin, error)) error {
	if _, _, err := s.head(ctx, dataset); err != nil {
		return err
	}
	name, err := token("dataset", dataset)
	if err != nil {
		return err
	}
	_, err = update(ctx, s.catalog, "pin."+name, func(r *pinRecord, _ bool) (bool, error) {
		pins, err := change(slices.Clone(r.Pins))
		r.Pins = pins
		return true, err
	})
	return err
}

// Pins returns a dataset's pins and legal holds.
func (s *Store) Pins(ctx context.Context, dataset string) ([]Pin, error) {
	name, err := token("dataset", dataset)
	if err != nil {
		return nil, err
	}
	var r pinRecord
	_, err = s.catalog.get(ctx, "pin."+name, &r)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return r.Pins, nil
}

// pinned returns the pin or hold that keeps a batch.
func pinned(pins []Pin, seq uint64) (Pin, bool) {
	i := slices.IndexFunc(pins, func(p Pin) bool { return seq >= p.From && seq < p.To })
	if i < 0 {
		return Pin{}, false
	}
	return pins[i], true
}
