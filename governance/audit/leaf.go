package audit

import (
	"golang.org/x/mod/sumdb/tlog"

	"github.com/stokehold/stokehold/governance"
	"github.com/stokehold/stokehold/governance/audit/proof"
)

// entryOf is the decision as the Merkle tree has it.
func entryOf(d *governance.Decision) proof.Entry {
	e := proof.Entry{
		ID: d.ID, Time: d.Time, Point: string(d.Point), Action: string(d.Action), EventID: d.EventID, Type: d.Type, Source: d.Source,
		Subject: d.Subject, Pipeline: d.Pipeline, Run: d.Run, Policy: d.Policy, Rule: d.Rule, Code: d.Code, Reason: d.Reason, Digest: d.Digest,
		Actor: d.Actor, Approval: d.Approval, Effect: d.Effect,
	}
	for _, n := range d.Notes {
		e.Notes = append(e.Notes, proof.Note{Policy: n.Policy, Rule: n.Rule, Reason: n.Reason, Mode: string(n.Mode), Action: string(n.Action)})
	}
	return e
}

// hasher gives the leaves of messages. Not safe for concurrent use.
type hasher struct{ leaf []byte }

// leaves calls f with the leaf of each decision of a message, in order. The bytes
// are good until f returns. The error wraps ErrCorrupt.
func (h *hasher) leaves(data []byte, f func(leaf []byte, d *governance.Decision)) error {
	return decodeMessage(data, func(d *governance.Decision) bool {
		e := entryOf(d)
		h.leaf = proof.AppendLeaf(h.leaf[:0], &e)
		f(h.leaf, d)
		return true
	})
}

// hashes is leaves with their hashes alone.
func (h *hasher) hashes(data []byte, f func(tlog.Hash)) error {
	return h.leaves(data, func(leaf []byte, _ *governance.Decision) { f(proof.LeafHash(leaf)) })
}
