// Package events is the bus: CloudEvents 1.0 in binary mode on NATS JetStream,
// judged on publish and again before a handler runs.
package events
