package tiers

import (
	"context"

	"github.com/stokehold/stokehold/arrowio"
)

// sweepWindow is how many of the newest sequences a sweep looks at.
const sweepWindow = 1024

// sweepWarm removes warm files of committed sequences below next that are not
// what the catalog names: attempts that were fenced, or died, between writing a
// file and committing it. Files at next and beyond may be another writer's work
// in progress and stay. Those far below were swept by earlier writers.
func (s *Store) sweepWarm(ctx context.Context, dataset string, next uint64) error {
	count := map[uint64][]string{}
	err := s.warm.files(dataset, func(seq uint64, digest string) error {
		if seq < next && seq+sweepWindow >= next {
			count[seq] = append(count[seq], digest)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for seq, digests := range count {
		if len(digests) < 2 {
			continue
		}
		e, err := s.entry(ctx, dataset, seq, false)
		if err != nil {
			return err
		}
		keep, ok := e.Ref.In(arrowio.Warm)
		for _, d := range digests {
			if ok && d != keep.SHA256 {
				if err := s.warm.remove(dataset, seq, d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
