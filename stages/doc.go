// Package stages holds the Stage contract and the runtime that feeds one. A
// stage turns batches into batches, a model or a deployment; it never sees NATS,
// Temporal, S3 or a file descriptor.
//
// A Stage has one method, Run, and Func makes one of a function. Run gets a Task:
// its inputs (Batches, All, Range), its output (Write or WriteAt, or Build and
// WriteBuilt), its parameters (Decode), and ways to report (Progress, Metric,
// Note, Checkpoint, Publish, SaveModel). The same code runs in the worker's
// process, in a child process, and against datasets in memory (package stagetest).
//
// # Batches and who owns them
//
// An input batch is lent. Its Record, and whatever points into it, is valid until
// the loop body ends, on every way out of it; Record.Retain keeps it for longer,
// and the stage then calls Release. Its memory is shared with other readers and
// mapped read-only where it comes from another process: a stage never writes to
// it. Retaining many batches starves the reader, since their memory cannot be
// used again.
//
// A batch given to Write or WriteAt stays the stage's: when the call returns it
// has been stored or refused, and the stage releases it as ever. It may be, or
// point into, an input batch.
//
// A batch that a stage makes may be built where it will lie: Task.Build gives its
// Arrow builders shared memory and WriteBuilt writes the batch without a copy. The
// stage releases such a batch at once, since its memory is the arena's.
//
// A batch that exists has been judged, written through to disk and committed; a
// refusal by governance is an error that wraps events.ErrDenied and leaves
// nothing behind.
//
// # What an input is
//
// A dataset is a sequence of batches. A consumer starts together with the stage
// that it reads from and waits for batches as they come. Where that stage writes
// a dataset of the run's own, the input ends at its seal. Where it appends to a
// long-lived dataset (workflows.Into), Batches and All yield what it appended in
// this run, and end when it has completed. Batches that it found there already
// are not among them: a stage that places batches by their meaning (WriteAt, week
// w at sequence w) is read with Range, which means sequences of the dataset,
// whoever wrote them.
//
// The next batches are opened while a stage works on one, as far ahead as what both
// take asks for and Runtime.Ahead allows. Task.Epochs reads an input that is there
// in other orders: for training.
//
// # Retries
//
// A stage may be run again, with a higher Attempt, after an error, a crash of its
// process or a lost connection, and an attempt that was given up may still be
// running. So:
//
//   - The same input must give the same output, in the same order. Randomness
//     comes from Task.Seed, time from the data.
//   - An attempt writes everything again from its first batch. What an earlier one
//     committed is recognised, by its place, and not stored twice.
//   - Or it calls Restore first and goes on from the checkpoint: the next Write is
//     then the one after those written when the checkpoint was made. A checkpoint
//     travels with a heartbeat, so it may be older than the output: batches between
//     the two are recognised.
//   - Opening the output fences earlier attempts: their writes fail with
//     tiers.ErrFenced and change nothing. A run that appends to the same dataset
//     fences too, and its turn ends with the next attempt.
//   - Once an attempt has completed, a later one finds its batches and can add
//     none.
//   - Publish, SaveModel and the stage's own events have ids that do not name the
//     attempt, so they happen once.
//
// An error is retried unless IsPermanent says otherwise: one made by Permanent, a
// denial, a schema that does not fit, a panic.
//
// # Child processes
//
// A stage marked for a child process runs in a program that called RunIfChild,
// usually the same one started again. Its inputs are leased to it in shared
// memory and its outputs adopted as they are: no batch body is copied between the
// processes, and what the child does wrong ends the child alone. Its death is an
// error like another, and the next attempt gets a new one.
//
// A stage may also run in a child process of another program, in any language that
// speaks docs/WORKER-PROTOCOL.md: Assignment.Worker names it, Runtime.Workers has
// it, and Remote stands for its code here.
//
// The child has no connection to anything but its host, so such a stage cannot
// Publish, has no Models (SaveModel hands the model to the host, which registers
// it) and gets no source that its pipeline did not wire. What the child's stage holds in fields is what RunIfChild was
// given, not what the pipeline was built with. Write returns before the host has
// committed the batch; a refusal ends the Task's context, and the attempt, with
// the host's error. An input can be ranged over again once a loop has seen its
// end, and not after it was left early. Metrics and notes arrive when Run returns,
// and only if it succeeds.
package stages
