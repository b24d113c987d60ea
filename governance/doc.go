// Package governance judges events. Policies are YAML files shaped like
// Kubernetes' ValidatingAdmissionPolicy whose CEL rules say what must hold; an
// Engine evaluates them for the bus on publish and again on receive, makes every
// decision durable before its effect, and stamps what it permitted so that the
// receiving side can refuse what was never judged, was altered since, or was
// judged by a policy that is no longer accepted.
//
// It fails closed: no policies, an expression that cannot be evaluated, a
// decision that cannot be written and a stamp that cannot be verified all mean
// that the event does not pass.
//
// docs/GOVERNANCE.md describes the file format, the stamp's bytes and the limits.
package governance
