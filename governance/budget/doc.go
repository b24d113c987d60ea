// Package budget limits what runs may spend: accelerator-seconds and money, per
// run, pipeline and team, in windows of the calendar.
//
// A Document says what the limits and prices are. It is one key of a JetStream KV
// bucket, changed by compare-and-set, with its history kept. A Ledger follows it,
// and keeps what was spent in a second bucket. Whoever wants other limits proposes
// them in a third (Apply, Set, Raise); a Gate has that judged, and sets them.
//
// # How spending is counted once
//
// While a stage has a worker, a Meter measures how long, by the monotonic clock,
// and makes Reports. A report names run, stage, attempt and its own number, and
// holds all that the attempt has used so far, never an increment. So the ledger
// keeps the newest report of each attempt and drops the others: one that is
// repeated, late or out of order changes nothing, and one that is lost is made up
// for by the next. Attempts add up, also when they ran at the same time, since
// each used what it used.
//
// A run has one record, which a compare-and-set changes as a whole. There is no
// second place to bring into line: totals of pipelines, teams and windows are sums
// over the records, which every Ledger keeps in memory by following the bucket. A
// Ledger that has written waits until it has seen its own write come back, and so
// all that came before it.
//
// # Failing closed
//
// Where there is a document and the ledger cannot be written or read, Record and
// Standing fail with ErrUnavailable, and whoever asked must not spend. Without a
// document nothing is limited, and nothing is recorded.
package budget
