package tiers

import (
	"context"
	"errors"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"

	"github.com/stokehold/stokehold/arrowio"
)

// CopyFault is a copy that is not what the catalog says.
type CopyFault struct {
	Dataset  string       `json:"dataset"`
	Sequence uint64       `json:"sequence"`
	Tier     arrowio.Tier `json:"tier"`
	URI      string       `json:"uri"`
	Error    string       `json:"error"`
	Healed   bool         `json:"healed"`
}

// Verification is what Verify found.
type Verification struct {
	Batches uint64      `json:"batches"`
	Copies  uint64      `json:"copies"` // read, warm and cold
	Bytes   int64       `json:"bytes"`
	Faults  []CopyFault `json:"faults"`
	More    uint64      `json:"more,omitempty"` // faults beyond maxFaults
}

// maxFaults bounds what Verify returns; the callback is told of all.
const maxFaults = 1000

// Verify reads every warm and cold copy of batches from..to-1, or those that there
// are, and compares its SHA-256, and its rows and schema, with the catalog. With
// repair, a copy that is damaged or missing is written again from a good one, and
// reported as tier.copy.damaged. each, if not nil, is told of each fault at once.
//
// A warm copy is looked for on this host.
func (s *Store) Verify(ctx context.Context, dataset string, from, to uint64, repair bool, each func(CopyFault)) (Verification, error) {
	v := Verification{Faults: []CopyFault{}}
	for info, err := range s.Entries(ctx, dataset, from, to) {
		if err != nil {
			return v, err
		}
		v.Batches++
		faults, err := s.verifyBatch(ctx, info.Ref, repair, &v)
		if err != nil {
			return v, &Error{Op: "verify", Dataset: dataset, Batch: info.Ref.ID(), Err: err}
		}
		for _, f := range faults {
			if each != nil {
				each(f)
			}
			if len(v.Faults) < maxFaults {
				v.Faults = append(v.Faults, f)
			} else {
				v.More++
			}
		}
	}
	return v, nil
}

func (s *Store) verifyBatch(ctx context.Context, ref arrowio.Ref, repair bool, v *Verification) ([]CopyFault, error) {
	var good arrow.RecordBatch
	defer func() {
		if good != nil {
			good.Release()
		}
	}()
	var bad []damage
	for _, l := range ref.Locations {
		c, ok := s.durable(l.Tier)
		if !ok {
			continue
		}
		v.Copies++
		rec, err := c.Read(ctx, ref, l)
		if err == nil {
			var b *Batch
			if b, err = s.checked(&Batch{Ref: ref, Record: rec, Tier: l.Tier}); err == nil {
				v.Bytes += l.Bytes
				if good == nil {
					good = b.Record
				} else {
					b.Release()
				}
				continue
			}
		}
		if !errors.Is(err, arrowio.ErrCorrupt) && !errors.Is(err, arrowio.ErrGone) {
			return nil, fmt.Errorf("%s: %w", l.URI, err) // the tier could not be asked
		}
		bad = append(bad, damage{l, err})
	}
	var faults []CopyFault
	for _, d := range bad {
		f := CopyFault{Dataset: ref.Dataset, Sequence: ref.Sequence, Tier: d.loc.Tier, URI: d.loc.URI, Error: clipReason(d.err)}
		if repair {
			healed, err := s.heal(ctx, ref, d, good)
			if err != nil {
				f.Error += "; repair: " + clipReason(err)
			}
			f.Healed = healed
		}
		faults = append(faults, f)
	}
	return faults, nil
}
