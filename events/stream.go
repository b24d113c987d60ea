package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// DefaultPrefix is the Config.Prefix of a bus that names none.
const DefaultPrefix = "stokehold"

// Limits of the streams beside the event stream.
const (
	// maxMessageBytes is what the server takes at all: the data, and as much
	// again for headers. Anything between MaxDataBytes and this is dead-lettered.
	maxMessageBytes  = 2 * MaxDataBytes
	deadLetterAge    = 30 * 24 * time.Hour
	deadLetterBytes  = 256 << 20
	advisoryAge      = 7 * 24 * time.Hour
	advisoryBytes    = 64 << 20
	probeSubject     = "probe"
	eventSubject     = "event"
	topicSubject     = "topic"
	deadLetterWord   = "dlq"
	heldWord         = "held"
	heldAge          = 90 * 24 * time.Hour
	heldBytes        = 256 << 20
	maxHeldHeaders   = 8 << 10 // what holding adds to a message
	maxDeliveriesPre = "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES."
	terminatedPre    = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED."
)

// names of the streams and subjects of one bus, all derived from its prefix.
type names struct {
	prefix string
}

func (n names) stream(part string) string { return strings.ToUpper(n.prefix) + "_" + part }
func (n names) events() string            { return n.stream("EVENTS") }
func (n names) topics() string            { return n.stream("TOPICS") }
func (n names) deadLetters() string       { return n.stream("DLQ") }
func (n names) heldStream() string        { return n.stream("HELD") }
func (n names) advisories() string        { return n.stream("ADVISORIES") }
func (n names) probes() string            { return n.stream("PROBE") }
func (n names) probe() string             { return n.prefix + "." + probeSubject }

// event is the subject of an event: the type, then exactly one more token for
// the CloudEvents subject, so that no two pairs of type and subject share one.
func (n names) event(typ, subject string) string {
	return n.prefix + "." + eventSubject + "." + typ + "." + EncodeToken(subject)
}

// matches reports whether a NATS subject is the one of type and subject.
func (n names) matches(natsSubject, typ string, subject *string) bool {
	rest, ok := strings.CutPrefix(natsSubject, n.prefix)
	if !ok {
		return false
	}
	if rest, ok = strings.CutPrefix(rest, "."+eventSubject+"."); !ok {
		return false
	}
	if rest, ok = strings.CutPrefix(rest, typ); !ok || rest == "" || rest[0] != '.' {
		return false
	}
	if subject == nil {
		return rest[1:] == noSubject
	}
	return rest[1:] == EncodeToken(*subject)
}

func (n names) topic(topic string) string {
	return n.prefix + "." + topicSubject + "." + EncodeToken(topic)
}

// held is the subject of what is held under an id.
func (n names) held(id string) string { return n.prefix + "." + heldWord + "." + id }

// isEvent reports whether a NATS subject is one of the event stream.
func (n names) isEvent(natsSubject string) bool {
	return strings.HasPrefix(natsSubject, n.prefix+"."+eventSubject+".")
}

// deadLetter is the subject of the one dead letter that a consumer can leave of
// a message.
func (n names) deadLetter(stream, consumer string, sequence uint64) string {
	return fmt.Sprintf("%s.%s.%s.%s.%d", n.prefix, deadLetterWord, stream, consumer, sequence)
}

func checkPrefix(p string) error {
	if p == "" || len(p) > 32 {
		return fmt.Errorf("prefix %.40q: must have 1 to 32 characters", p)
	}
	for i := range len(p) {
		if c := p[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("prefix %q: only a to z, 0 to 9, hyphen and underscore are allowed", p)
		}
	}
	return nil
}

// checkDurable accepts what a server takes as a consumer name and as one token
// of a subject.
func checkDurable(d string) error {
	if d == "" || len(d) > 128 {
		return fmt.Errorf("durable name %.40q: must have 1 to 128 characters", d)
	}
	for i := range len(d) {
		if c := d[i]; c <= ' ' || c >= 0x7F || strings.IndexByte(`.*>/\`, c) >= 0 {
			return fmt.Errorf("durable name %q: printable ASCII without space . * > / \\ only", d)
		}
	}
	return nil
}

// streams returns the configuration of every stream that Open keeps.
func (c *Config) streams() []jetstream.StreamConfig {
	n := names{c.Prefix}
	return []jetstream.StreamConfig{{
		Name:        n.events(),
		Description: "Stokehold events",
		Subjects:    []string{n.prefix + "." + eventSubject + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    c.Replicas,
		MaxAge:      c.MaxAge,
		MaxBytes:    c.MaxBytes,
		MaxMsgSize:  maxMessageBytes,
		Duplicates:  c.Dedupe,
		Discard:     jetstream.DiscardOld,
		AllowDirect: true,
	}, {
		Name:        n.deadLetters(),
		Description: "Stokehold events that could not be handled, with the reason in their headers",
		Subjects:    []string{n.prefix + "." + deadLetterWord + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    c.Replicas,
		MaxAge:      deadLetterAge,
		MaxBytes:    deadLetterBytes,
		Discard:     jetstream.DiscardOld,
	}, {
		Name:        n.heldStream(),
		Description: "Stokehold events that governance holds until somebody lets them go",
		Subjects:    []string{n.prefix + "." + heldWord + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    c.Replicas,
		MaxAge:      heldAge,
		MaxBytes:    heldBytes,
		MaxMsgSize:  maxMessageBytes + maxHeldHeaders,
		// One message for what is held, and a full stream refuses: what waits for a
		// person must not be pushed out by what comes later.
		MaxMsgsPerSubject: 1,
		Discard:           jetstream.DiscardNew,
	}, {
		Name:        n.advisories(),
		Description: "The server's word that a consumer gave up on an event",
		Subjects: []string{
			maxDeliveriesPre + n.events() + ".>", terminatedPre + n.events() + ".>",
			maxDeliveriesPre + n.topics() + ".>", terminatedPre + n.topics() + ".>",
		},
		Storage:  jetstream.FileStorage,
		Replicas: c.Replicas,
		MaxAge:   advisoryAge,
		MaxBytes: advisoryBytes,
		Discard:  jetstream.DiscardOld,
	}, {
		Name:              n.probes(),
		Description:       "Where Stokehold checks that the server persists",
		Subjects:          []string{n.probe()},
		Storage:           jetstream.FileStorage,
		Replicas:          c.Replicas,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        1 << 10,
		Discard:           jetstream.DiscardOld,
	}}
}

func (c *Config) topicStream() jetstream.StreamConfig {
	n := names{c.Prefix}
	return jetstream.StreamConfig{
		Name:        n.topics(),
		Description: "Watermill topics on the Stokehold bus",
		Subjects:    []string{n.prefix + "." + topicSubject + ".>"},
		Storage:     jetstream.FileStorage,
		Replicas:    c.Replicas,
		MaxAge:      c.MaxAge,
		MaxBytes:    c.MaxBytes,
		MaxMsgSize:  maxMessageBytes,
		Duplicates:  c.Dedupe,
		Discard:     jetstream.DiscardOld,
		AllowDirect: true,
	}
}

func ensureStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	_, err := js.CreateOrUpdateStream(ctx, cfg)
	if err == nil {
		return nil
	}
	hint := "check that the server runs JetStream and that no other stream takes these subjects"
	switch {
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		hint = "start nats-server with JetStream (-js)"
	case errors.Is(err, context.DeadlineExceeded):
		hint = "is the server reachable, and does its disk have room?"
	}
	return &Error{Op: "open", Hint: hint, Err: fmt.Errorf("%w: stream %s: %w", ErrUnavailable, cfg.Name, err)}
}
