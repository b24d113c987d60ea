// Package epoch reads a dataset again and again, as training does: in an order
// that a seed decides, in batches of a size that training wants, shared out among
// workers, and to be taken up again in the middle.
//
//	data, err := epoch.Open(ctx, store, "flights/features", epoch.Config{
//		Order: epoch.Order{Kind: epoch.Shuffled, Seed: 7}, BatchRows: 4096, Workers: 4, Worker: rank,
//	})
//	for batch, err := range data.Epoch(ctx, 0) {
//		...
//		checkpoint(batch.Next) // data.Resume(ctx, next) goes on here
//	}
//
// # One order
//
// An epoch is one sequence of rows: the dataset's batches in the order's
// permutation for that epoch, one after another, cut into batches of BatchRows rows.
// The batches of that sequence are numbered; of W workers worker w gets the numbers
// that leave w when divided by W. So the sequence depends on dataset, order and
// BatchRows alone, not on how many workers there are, and a worker that comes back
// with another number of workers at the same place goes on in the same sequence.
//
// The dataset is as it was when it was opened: batches that are appended later are
// not in its epochs. Positions carry that, so that an epoch taken up again is the
// one that was left.
//
// # Reading ahead
//
// It takes a *tiers.Store and nothing else: a loop reads ahead in its order, announces
// where it is (tiers.Store.Announce), and sees a batch without the columns that
// governance takes out, in a program of one's own as in a stage (stages.Task.Epochs). Of
// what a stage brings besides, a program does without, or for itself: a bound for all
// loops of the process together (Config.Prefetch.Budget; each has 32 batches and
// 512 MiB of its own), labels of what is read on what is written (tiers.Head.Labels), and
// checkpoints (Batch.Next).
//
// # Copies
//
// A batch whose rows lie in one stored batch is a slice of it, in place. One that
// spans several is put together, which copies its rows once; Stats counts them.
// With BatchRows 0 batches are handed out as they are stored, and nothing is ever
// copied.
package epoch
