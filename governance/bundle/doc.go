// Package bundle gives a deployment one signed, versioned set of policies that
// every process takes over within a second of its being applied.
//
// # A bundle
//
// A bundle is a text: a manifest in lines, signed as a note of
// golang.org/x/mod/sumdb/note with one or more Ed25519 keys, and the policy
// files it names by size and SHA-256. [Create] makes and signs one, [Open] reads
// and verifies one, [Bundle.Load] compiles it. The format is in
// docs/POLICIES.md.
//
// # Order
//
// The order of bundles of one name is that of their [Position]: epoch, then
// version. Whoever holds a bundle refuses one that is not later. A roll-back is a
// bundle of the next epoch, whose manifest gives the reason; so an old stream
// that is restored, or an old bundle sent again, rolls nothing back.
//
// # Distribution
//
// A [Store] keeps the bundle in a JetStream key-value bucket, with history;
// [Apply] replaces it by compare-and-set, after the decision log has it on
// record. A [Manager] in each process watches the store, verifies what comes
// with its own trusted keys, compiles it, keeps a copy on disk, and swaps the
// engine's policies. What is not as it should be is refused, once in the log and
// until further notice in [Manager.Status], and the policies in force stay.
package bundle
