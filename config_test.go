package stokehold

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"time"
)

func TestSecretsNeverShow(t *testing.T) {
	cfg := Config{NATS: NATS{Password: "hunter2", Token: "hunter2"}, S3: S3{SecretKey: "hunter2", SessionToken: "hunter2", CustomerKey: "hunter2"}, Flight: Flight{Token: "hunter2"}, Key: "hunter2"}
	var logged bytes.Buffer
	slog.New(slog.NewTextHandler(&logged, nil)).Info("started", "config", cfg, "password", cfg.NATS.Password)
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("started", "key", cfg.Key, "s3", cfg.S3)
	encoded, err := json.Marshal(struct{ S3 S3 }{cfg.S3})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"%v": fmt.Sprintf("%v", cfg), "%+v": fmt.Sprintf("%+v", cfg), "%#v": fmt.Sprintf("%#v", cfg),
		"%s": fmt.Sprintf("%s", cfg.Key), "%q": fmt.Sprintf("%q", cfg.Key), "%x": fmt.Sprintf("%x", cfg.Key),
		"slog": logged.String(), "json": string(encoded),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "68756e746572") {
			t.Errorf("%s shows the secret: %s", name, text)
		}
	}
	if cfg.Key.Reveal() != "hunter2" {
		t.Error("Reveal does not give the secret")
	}
}

func TestConfigReportsEveryFault(t *testing.T) {
	cfg := Config{
		NATS:     NATS{URL: "nats://user:pw@example.org:4222"},
		S3:       S3{Endpoint: "localhost:9000", AccessKey: "half", CustomerKey: "hunter2"},
		Tiers:    Tiering{WarmBytes: -1, Every: time.Millisecond, SweepGrace: time.Second},
		HotBytes: 12, HotLimit: 11, HotWait: -1, HotPages: 7,
		Flight: Flight{Addr: ":8815", CertFile: "x", Token: "hunter2"},
	}.withDefaults()
	err := cfg.validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"holds credentials", "http://HOST:PORT", "access key and a secret key", "32 bytes in base64", "a quota of -1 bytes", "passes every 1ms", "older than 1s", "state directory", "at least 1 MiB", "leaves no room", "a wait of -1ns", "huge pages 7", "both a certificate and a key", "Flight.Advertise", "at least 16"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "pw@") {
		t.Errorf("error shows the password: %v", err)
	}
}

func TestDefaultLimitLeavesRoomForOthersBatches(t *testing.T) {
	for hot, want := range map[int64]int64{0: 1 << 30, 1 << 20: 1 << 30, 1 << 30: 4 << 30, math.MaxInt64: math.MaxInt64 / 4 * 4} {
		if got := (Config{HotBytes: hot}).withDefaults().HotLimit; got != want {
			t.Errorf("HotBytes %d: limit %d, want %d", hot, got, want)
		}
	}
}

func TestDefaultsAreAValidLocalSetup(t *testing.T) {
	if err := (Config{StateDir: t.TempDir()}).withDefaults().validate(); err != nil {
		t.Fatal(err)
	}
}
