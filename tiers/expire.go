package tiers

import (
	"context"
	"fmt"

	"github.com/stokehold/stokehold/events"
)

// Expire ends batches from..to-1, or those of them that there are: their entries
// keep what they were and name no copies any more, so that reading them is
// ErrExpired and Collect removes the bytes after its grace. Judged, and announced,
// as batch.expired. ErrPinned if a pin or a legal hold lies on any of them.
//
// Repeatable; it returns how many this call ended.
func (s *Store) Expire(ctx context.Context, dataset string, from, to uint64, reason string) (int, error) {
	n, err := s.expire(ctx, dataset, from, to, reason)
	if err != nil {
		return n, &Error{Op: "expire", Dataset: dataset, Err: err}
	}
	return n, nil
}

func (s *Store) expire(ctx context.Context, dataset string, from, to uint64, reason string) (n int, err error) {
	head, _, err := s.head(ctx, dataset)
	if err != nil {
		return 0, err
	}
	// The newest batch's event is announced again by the next writer: it stays.
	if to = min(to, head.Next); !head.Sealed && to == head.Next && to > 0 {
		to--
	}
	if from >= to {
		return 0, nil
	}
	pins, err := s.Pins(ctx, dataset)
	if err != nil {
		return 0, err
	}
	for _, p := range pins {
		if p.From < to && from < p.To {
			return 0, fmt.Errorf("%w: %s", ErrPinned, p)
		}
	}
	now := s.now().UTC()
	ev, err := events.New(events.TypeBatchExpired, source, dataset, fmt.Sprintf("%s#%d-%d/expired", dataset, from, to), now,
		events.BatchExpired{Dataset: dataset, From: int64(from), To: int64(to), Reason: reason})
	if err == nil {
		setLabels(&ev, head.Labels)
		err = s.bus.Approve(ctx, &ev)
	}
	if err != nil {
		return 0, err
	}
	for from < to {
		end := min(to, (from/blockBatches+1)*blockBatches)
		seqs := make([]uint64, 0, end-from)
		for seq := from; seq < end; seq++ {
			seqs = append(seqs, seq)
		}
		ended := map[uint64]bool{}
		err := s.change(ctx, dataset, seqs, func(e *entry) (bool, error) {
			if e.State == Expired {
				return false, nil
			}
			e.State, e.Ref.Locations = Expired, nil
			ended[e.Ref.Sequence] = true
			return true, nil
		})
		if err != nil {
			return n, err
		}
		for seq := range ended {
			s.hot.remove(batchID(dataset, seq))
		}
		n += len(ended)
		from = end
	}
	return n, s.bus.Publish(ctx, ev)
}
