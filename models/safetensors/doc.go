// Package safetensors reads and writes the safetensors format: an 8-byte
// little-endian header length, a JSON header, and the tensors' bytes without
// gaps. It is the only weight format Stokehold itself writes, since reading one
// can run no code.
//
// Decode is strict. What the format's specification forbids or leaves to the
// reader's mercy is an error here: overlapping or gapped tensors, bytes that no
// tensor owns, duplicate names, names or metadata that are not UTF-8, offsets
// that disagree with shape and type. Memory use is bounded by a small multiple of
// the input's size whatever the header claims, and tensor data is never copied.
//
// Encode is deterministic: the same tensors and metadata give the same bytes, so
// that a model version, which is named by the SHA-256 of its artifact, is the
// same when the same training is repeated.
//
// The format is described at https://huggingface.co/docs/safetensors.
package safetensors
