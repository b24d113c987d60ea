package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// RetentionFloor is the shortest time that decisions are kept: six months, of which
// the longest has 184 days.
const RetentionFloor = 184 * 24 * time.Hour

// ErrRetention means that a retention was asked for that is shorter than the floor
// or than what the stream has.
var ErrRetention = errors.New("retention too short")

const defaultPrefix = "stokehold"

func streamName(prefix string) string { return strings.ToUpper(prefix) + "_DECISIONS" }

// ensureStream creates the stream, or updates it without shortening its retention.
// The server lets nobody take back that messages cannot be deleted or purged.
func (l *JetStreamLog) ensureStream(ctx context.Context) error {
	age := max(l.cfg.MaxAge, RetentionFloor)
	info, err := l.info(ctx)
	switch {
	case errors.Is(err, ErrNoLog):
	case err != nil:
		return err
	default:
		have := info.Config.MaxAge
		longer := have == 0 || have > age // 0 is without end
		if longer && l.cfg.MaxAge != 0 {
			return fmt.Errorf("audit: %w: MaxAge is %s and stream %s keeps decisions for %s; retention may be raised, not lowered: leave MaxAge out to keep what is there",
				ErrRetention, age, l.stream, forever(have))
		}
		if longer {
			age = have
		}
	}
	size := int64(-1)
	if l.cfg.MaxBytes > 0 {
		size = l.cfg.MaxBytes
	}
	_, err = l.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:        l.stream,
		Description: "Decisions of governance. One message holds many; see the package governance/audit.",
		Subjects:    []string{l.cfg.Prefix + ".decision.*"},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardNew,
		MaxAge:      age,
		MaxBytes:    size,
		Replicas:    l.cfg.Replicas,
		Duplicates:  max(2*time.Minute, 2*l.cfg.Timeout),
		DenyDelete:  true,
		DenyPurge:   true,
	})
	if err != nil {
		return fmt.Errorf("audit: create stream %s: %w", l.stream, err)
	}
	return nil
}

func forever(d time.Duration) string {
	if d == 0 {
		return "ever"
	}
	return d.String()
}

// weaknesses says in what the stream's configuration is less than what Open makes.
func weaknesses(c *jetstream.StreamConfig, floor time.Duration) []string {
	var out []string
	if !c.DenyDelete || !c.DenyPurge {
		out = append(out, "the stream lets messages be deleted or purged")
	}
	if c.MaxAge != 0 && c.MaxAge < floor {
		out = append(out, fmt.Sprintf("the stream keeps decisions for %s; the floor is %s", c.MaxAge, floor))
	}
	if c.Discard != jetstream.DiscardNew && (c.MaxBytes > 0 || c.MaxMsgs > 0) || c.MaxMsgsPerSubject > 0 || c.Retention != jetstream.LimitsPolicy {
		out = append(out, "the stream drops decisions before their time when it is full")
	}
	if c.Storage != jetstream.FileStorage {
		out = append(out, "the stream is in memory")
	}
	return out
}
