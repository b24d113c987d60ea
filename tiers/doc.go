// Package tiers keeps datasets: a catalog in JetStream KV says where each batch
// is, and hot (shared memory), warm (local disk) and cold (S3) stores hold the
// bytes. The catalog's compare-and-set is the only arbiter.
//
// # Writing a batch
//
// A dataset is a sequence of batches. Its head, one key of the catalog, says how
// many there are, who may append (a fence: run, stage, attempt) and in which
// epoch; opening a Writer moves the head to a new epoch, which fences every
// earlier writer. Writer.WriteAt then takes these steps:
//
//  1. The batch is framed into a slot of the arena, if there is room.
//  2. It is written to a file of the warm tier, as arrowio.Frame lays it out, and
//     synced. The file has no name of its own yet.
//  3. The event batch.published is judged (events.Bus.Approve), which logs the
//     decision. A denial ends it here: slot and file go, nothing was ever visible.
//  4. The file gets its name, DATASET/SEQUENCE-SHA256.arrow, and the directory is
//     synced.
//  5. The batch's entry is put under its own key, by compare-and-set. An entry
//     gives way only to a writer of its own or a later epoch, so a stale attempt
//     that is late cannot replace what a newer one committed. Readers do not look
//     at entries at or beyond the head's Next.
//  6. The head's Next moves past the batch, by compare-and-set. This is the
//     moment at which the batch exists. A fenced writer fails here with ErrFenced.
//  7. The approved event is published under the id DATASET#SEQUENCE.
//
// A writer that dies before step 6 leaves a file and perhaps an entry, which the
// next writer of that sequence replaces, and sweeps. One that dies between 6 and
// 7 leaves a batch that exists and was not announced: opening the next Writer
// publishes the event of the newest batch again, as it was approved, and the bus
// drops it if it is there. A stage that is retried writes its batches again, each
// where Writer.Place says that it lies; those that exist are returned as they are.
//
// Several runs may append to one dataset, even at once: each fences the other,
// whose stage is retried and goes on. The head therefore also keeps the part that
// its writer's stage has appended in this run: where it began (Writer.Base, the
// same on every attempt), where its newest batch is, how many it has, and whether
// the stage has completed (Writer.Finish). A writer that is displaced has its part
// kept under a key of its own, before.
//
// AdoptAt differs in step 1 only: the bytes are a sealed segment that another
// process wrote. They are validated in full and become the hot copy where they
// lie. So does WriteBuilt: the batch was built in the arena (Store.Build), where
// only metadata is added. And WriteAt itself copies nothing of a batch that was
// read from shared memory and is passed on as it was: its slot gets another holder.
//
// # Reading
//
// Store.Batches yields committed batches in sequence and then waits. It is woken
// by judged events; because a wake-up can be lost, it also looks at the head four
// times a second. OpenBatch tries the nearest place first: a slot of an arena in this
// process, then the other processes of this host (Config.Peers), then the mapped warm
// file, whose SHA-256 is verified once per mapping, then other hosts (Config.Far), then
// the object, whose SHA-256 is verified on each read. One that is late is not waited
// for alone (Config.HedgeAfter, docs/decisions/0040). A copy that is damaged is passed
// over, repaired from the one that serves, and reported (tier.copy.damaged); a peer
// that fails is passed over. Hot and warm batches are read in
// place; Stats.CopiedBytes counts the body bytes that had to be copied into an
// arena. Local is what a store gives out to other hosts in turn.
//
// The arena holds the newest batches. When a loan finds no room the oldest that
// nobody reads are given up. A batch that still finds none within Config.HotWait,
// or is larger than the arena, spills: it is written to the warm tier alone, from
// where its buffers lie, and has no hot location. So does a segment that is over
// the host's quota (shm.Host.Limit). Stats.Spilled counts them, and the log says so
// at most every 10 s. It costs readers a mapping and the writer the wait.
//
// Store.Appended yields what one stage of one run appends, and ends when that
// stage has completed: how a stage reads a long-lived dataset that another stage
// of its run writes. Finish rings a bell for readers of its own process; those of
// others see it within a quarter of a second.
//
// # The catalog
//
// The newest batches have a key each. Older ones are kept 256 to a value, so that a
// dataset's length costs the server no memory and listing it (Store.Entries) takes
// one block at a time; see block and docs/decisions/0034.
//
// # Migration
//
// Store.Move makes a verified copy of one batch in the cold tier, or back in the
// warm one, in steps that may each be repeated and after any of which the process
// may die: intent (tier.move.requested is judged before a byte is read), copy,
// verify (the copy is read back, its hash and every value compared), flip (one
// compare-and-set adds the location, after tier.moved was judged), announce, and
// after a grace drop. The steps are single calls (MoveStep) for the activities of
// a workflow. The warm copy stays, unless the endpoint declares that it syncs
// and Migration.Evict asks for the copy to go; it goes once no Lease holds the
// batch, and not at all while a Pin does.
//
// Store.Verify reads every copy, Store.Expire ends batches, Store.Collect removes
// what no entry names.
package tiers
