// Package models is the registry: content-addressed model versions with metrics
// and lineage, and the aliases (champion, challenger) that point to them.
//
// A version is named by the SHA-256 of its artifact, so training again from the
// same data with the same seed registers nothing new. Descriptions and aliases
// are keys of one JetStream KV bucket; artifacts are files of a local directory,
// synced, and objects of the cold tier. The order of effects is always
//
//	judge the event -> store the artifact, synced -> store the key -> publish
//
// so a version that can be seen has its bytes, and one that governance refused
// was never there. An alias moves by compare-and-set against the version that the
// caller believes it to point at: of two promoters one wins, and the other gets
// ErrConflict. Whatever is cut off between two effects is completed by doing the
// same again: all operations are idempotent and all event ids deterministic.
//
//	model.registered  MODEL/ID
//	model.promoted    RUN/promoted/MODEL/ALIAS/GENERATION
//	model.refused     RUN/refused/MODEL/ID
//
// Every load verifies the artifact's hash. A local copy that is damaged or gone
// is taken from the cold tier and mended.
package models
