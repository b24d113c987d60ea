// Package workflows turns pipelines into Temporal workflows: the typed builder,
// the interpreter that runs a pipeline, the triggers that start runs, and the
// migration of datasets between tiers.
//
// # From builder to run
//
// A [Pipeline] is built in Go and checked by the compiler; [Pipeline.Build]
// checks the rest and returns every fault at once. What it returns, a
// [Definition], is data: JSON as docs/PIPELINES.md describes, drawn by
// [Definition.Mermaid] and [Definition.Text]. A [Worker] hosts the stages of
// its pipelines and the one interpreter workflow that runs any definition;
// [Start] starts a run. A run is the workflow PIPELINE/RUNKEY, and that is also
// its id on events, in lineage and in fences: unique for ever.
//
// # Triggers
//
// For each trigger of its pipelines the worker consumes the bus in batches,
// evaluates the trigger's condition and key, and hands each group of events to
// the durable workflow trigger/PIPELINE/NAME/KEY, which dedupes, debounces,
// cools down and starts runs. Events are acknowledged once Temporal has them.
//
// # What travels through histories
//
// References and small values only: a definition of at most 16 KiB, run
// parameters and stage results of at most 64 KiB. Event payloads stay on the
// bus except for the newest of a run, see [RunParams].
package workflows
