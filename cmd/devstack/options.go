package devstack

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Ports of a stack started without Options.FreePorts.
const (
	DefaultNATSPort     = 4222
	DefaultTemporalPort = 7233
	DefaultUIPort       = 8233
	DefaultS3Port       = 9000
)

// Namespace is the Temporal namespace that a stack registers.
const Namespace = "default"

// Bucket is the S3 bucket that a stack creates.
const Bucket = "stokehold"

// Region is the S3 region the gateway answers for.
const Region = "us-east-1"

// DefaultStartTimeout bounds Start where Options.StartTimeout is zero.
const DefaultStartTimeout = 30 * time.Second

// Ports are TCP ports on 127.0.0.1. Zero means the default port, or a free one under Options.FreePorts.
type Ports struct {
	NATS     int
	Temporal int
	UI       int
	S3       int
}

// Options configure Start.
type Options struct {
	// Dir is the state directory. It is created with mode 0700 where it does not exist. Required.
	Dir string
	// FreePorts picks free ports for the listeners whose port in Ports is zero.
	FreePorts bool
	// Ports fixes the ports of listeners.
	Ports Ports
	// WithoutTemporal, WithoutUI and WithoutS3 leave a server out, which makes a test's start quicker. The UI is
	// left out together with Temporal.
	WithoutTemporal, WithoutUI, WithoutS3 bool
	// StartTimeout bounds the start of all servers. Zero means DefaultStartTimeout.
	StartTimeout time.Duration
	// Tuning changes the Temporal server's settings. The zero value is what the project measured to be best.
	Tuning Tuning
	// Logger receives the stack's own few messages (a server that failed after its start). Nil discards them.
	// The servers' logs go to files in Dir/logs, never here.
	Logger *slog.Logger
}

// Tuning selects the Temporal server's settings, for measurements.
type Tuning struct {
	// Stock runs the Temporal server with its own default dynamic configuration and one SQLite connection.
	Stock bool
	// Dynamic adds or replaces single dynamic configuration values, by their documented key.
	Dynamic map[string]any
	// Pragmas adds or replaces SQLite pragmas.
	Pragmas map[string]string
	// Connections is the number of SQLite connections. Zero means the default of the stack.
	Connections int
	// HistoryShards is the number of history shards of a new database. Zero means the default of the stack.
	HistoryShards int
}

func (o Options) validate() error {
	var faults []error
	if o.Dir == "" {
		faults = append(faults, errors.New("devstack: Options.Dir is empty: name a state directory"))
	}
	for _, p := range []struct {
		name string
		port int
	}{{"NATS", o.Ports.NATS}, {"Temporal", o.Ports.Temporal}, {"UI", o.Ports.UI}, {"S3", o.Ports.S3}} {
		if p.port < 0 || p.port > 65535 {
			faults = append(faults, fmt.Errorf("devstack: port %d for %s is out of range: use 0 to 65535", p.port, p.name))
		}
	}
	if o.StartTimeout < 0 {
		faults = append(faults, fmt.Errorf("devstack: StartTimeout %v is negative: use 0 for the default", o.StartTimeout))
	}
	return errors.Join(faults...)
}

// port gives the port to listen on; 0 means any free one.
func (o Options) port(fixed, byDefault int) int {
	if fixed != 0 || o.FreePorts {
		return fixed
	}
	return byDefault
}
