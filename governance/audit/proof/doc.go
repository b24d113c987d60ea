// Package proof checks the decision log from outside: the bytes of its entries,
// the Merkle tree over them, signed checkpoints, and inclusion proofs. It needs
// neither NATS nor the rest of the framework, so that whoever doubts the log need
// not run the software that keeps it. docs/AUDIT.md has every format, precise
// enough to write another verifier.
//
// The tree is that of RFC 6962 (Certificate Transparency), checkpoints are signed
// notes as https://c2sp.org/tlog-checkpoint has them.
package proof
