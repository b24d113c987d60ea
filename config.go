package stokehold

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"time"

	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
	"github.com/stokehold/stokehold/events"
)

// Config says where the servers are and what this process keeps on its own disk.
// Only NATS.URL, Temporal.Address and StateDir are required.
type Config struct {
	NATS     NATS
	Temporal Temporal
	S3       S3     // without an endpoint there is no cold tier
	Flight   Flight // without it, batches travel between hosts through the object store alone
	Audit    Audit  // checkpoints of the decision log
	Worker   Worker // what this process is
	// Place is where this process and its disk are, and what the models that it puts into
	// service are for; ColdPlace is where the bucket of S3 is, whose Region is a name of
	// the protocol. Data go nowhere that their labels forbid, and what is not known counts
	// against a place (docs/LABELS.md).
	Place, ColdPlace events.Place
	Tiers            Tiering
	// Actors is a document that says who has which role (docs/APPROVALS.md). Without
	// one nobody can approve anything.
	Actors string
	// StateDir holds the warm tier and the local copies of models. One process at a
	// time may use it.
	StateDir string
	// Policies are files or directories of governance policies, which count until a
	// bundle is applied (`stokehold policy apply`). Without any, every event is allowed
	// and every decision is still recorded.
	Policies []string
	// PolicyKeys is a file that lists the keys whose policy bundles this process
	// takes. Empty: policy.trusted in StateDir, made at the first start with a key that
	// is made there, too, so that whoever may read the directory may apply policies.
	PolicyKeys string
	// Key signs the stamps on judged events. All processes of a deployment share it.
	// Empty: a key of its own is made and kept in StateDir.
	Key Secret
	// HotBytes is the size of the shared-memory arena, reserved when the process
	// starts. Default 64 MiB.
	HotBytes int64
	// HotLimit is the most shared memory in bytes that this process keeps: the arena,
	// and what other processes (its children) wrote and it adopted. Beyond it a batch
	// of theirs goes to the warm tier alone. Default four times HotBytes, at least
	// 1 GiB: the arena, as much again of adopted batches that stay hot (the store
	// keeps up to HotBytes of them, or 256 MiB), and the rest for those that are being
	// read or on their way and for the arenas of children.
	HotLimit int64
	// HotWait is how long a write waits for room in an arena full of batches that are
	// being read, before it goes to the warm tier alone. Default 20 ms.
	HotWait time.Duration
	// HotPrefault touches every page of the arena when the process starts, about a
	// second per GiB, so that no batch waits for it.
	HotPrefault bool
	// HotPages says which larger pages to ask the machine for; it may give none.
	HotPages shm.HugePages
	// PromoteBytes is how much the warm directory may hold for a read from the cold tier
	// to leave a copy there (tiers.Promotion). 0: it leaves none.
	PromoteBytes int64
	// RuntimeDir is where the processes of this host find one another to read each
	// other's hot tier in place; created with mode 0700. Default
	// handoff.RuntimeDir(), which is the same for all processes of a user.
	RuntimeDir string
	// NoPeers keeps the hot tier to this process: nobody else reads it, and it reads
	// nobody else's. Batches of other processes then come from the warm tier.
	NoPeers bool
	Log     *slog.Logger
}

// NATS is the bus. Credentials are one of a user with a password, a token, or a
// credentials file.
type NATS struct {
	URL       string // default nats://127.0.0.1:4222
	User      string
	Password  Secret
	Token     Secret
	CredsFile string
	// Inbox is the prefix of this user's inboxes, where the server's permissions give
	// each user one of its own (events.Permissions). Empty: _INBOX.
	Inbox string
}

// Temporal is the orchestrator.
type Temporal struct {
	Address   string // host:port, default 127.0.0.1:7233
	Namespace string // default "default"
	TaskQueue string // default "stokehold"
	APIKey    Secret
	TLS       bool // implied by APIKey
}

// Flight hands batches from host to host directly, over Arrow Flight. A process
// with an Addr gives out what is in its shared memory and on its disk, and the
// catalog says of each batch that it writes where it is to be had. A process with
// any of the fields set opens other hosts' batches there before it turns to the
// object store.
type Flight struct {
	Addr string // HOST:PORT to listen on; "": nothing is given out. Port 0: any free one
	// Advertise is HOST:PORT as other hosts reach this one. Default: Addr, which must
	// then name one address.
	Advertise string
	Token     Secret // that all hosts of a deployment share; at least 16 characters
	CertFile  string // PEM files: with them the server speaks TLS
	KeyFile   string
	CAFile    string // PEM: the authority that other hosts' certificates must come from
	// Insecure allows a token in the clear beyond this machine, as on a network that
	// is nobody else's, and hosts without a token.
	Insecure bool
}

// withDefaults fills what was left empty.
func (c Config) withDefaults() Config {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.NATS.URL, "nats://127.0.0.1:4222")
	def(&c.Temporal.Address, "127.0.0.1:7233")
	def(&c.Temporal.Namespace, "default")
	def(&c.Temporal.TaskQueue, "stokehold")
	def(&c.S3.Region, "us-east-1")
	def(&c.S3.Bucket, "stokehold")
	if c.HotBytes == 0 {
		c.HotBytes = 64 << 20
	}
	if c.HotLimit == 0 {
		c.HotLimit = max(min(c.HotBytes, math.MaxInt64/4)*4, 1<<30)
	}
	if c.RuntimeDir == "" {
		c.RuntimeDir = handoff.RuntimeDir()
	}
	c.Tiers = c.Tiers.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// validate reports every fault at once.
func (c Config) validate() error {
	var faults []error
	if u, err := url.Parse(c.NATS.URL); err != nil || u.Host == "" {
		faults = append(faults, errors.New("the NATS URL is not of the form nats://HOST:PORT"))
	} else if u.User != nil {
		faults = append(faults, errors.New("the NATS URL holds credentials, which end up in logs: set NATS.User and NATS.Password instead"))
	}
	faults = append(faults, c.S3.validate()...)
	faults = append(faults, c.Tiers.validate()...)
	faults = append(faults, c.Flight.validate()...)
	faults = append(faults, c.Audit.validate()...)
	faults = append(faults, c.Worker.validate()...)
	faults = append(faults, c.validatePlaces()...)
	if c.StateDir == "" {
		faults = append(faults, errors.New("there is no state directory: name one for the warm tier and the models"))
	}
	if c.HotBytes < 1<<20 {
		faults = append(faults, fmt.Errorf("a hot tier of %d bytes is too small: give it at least 1 MiB", c.HotBytes))
	}
	if c.HotLimit < c.HotBytes {
		faults = append(faults, fmt.Errorf("a limit of %d bytes of shared memory leaves no room for a hot tier of %d: raise HotLimit, or make HotBytes smaller", c.HotLimit, c.HotBytes))
	}
	if c.HotWait < 0 {
		faults = append(faults, fmt.Errorf("a wait of %v for room in the hot tier: want a time above 0, or 0 for the default", c.HotWait))
	}
	if c.HotPages < shm.NoHugePages || c.HotPages > shm.ReservedHugePages {
		faults = append(faults, fmt.Errorf("huge pages %d are none of the kinds that there are", c.HotPages))
	}
	return errors.Join(faults...)
}
