// Package config finds out where the servers are and how to talk to them. From
// the strongest: flags, environment, the configuration file, a running
// `stokehold dev`, defaults.
package config

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/stokehold/stokehold/events"
	"github.com/stokehold/stokehold/governance/label"
)

// DefaultFile is read when it exists and no other file is named.
const DefaultFile = "stokehold.yaml"

// DefaultStateDir is where `stokehold dev` keeps its state, and where the other
// commands look for a running one.
const DefaultStateDir = ".stokehold"

// maxFileBytes bounds a configuration or addresses file.
const maxFileBytes = 1 << 20

// ErrConfig marks every error that the user mends by changing the configuration.
var ErrConfig = errors.New("bad configuration")

// Config is the resolved configuration. Printing it in any way shows no secret.
type Config struct {
	NATS     NATS     `koanf:"nats" json:"nats"`
	Temporal Temporal `koanf:"temporal" json:"temporal"`
	S3       S3       `koanf:"s3" json:"s3"`
	Flight   Flight   `koanf:"flight" json:"flight"`
	Hot      Hot      `koanf:"hot" json:"hot"`
	Warm     Warm     `koanf:"warm" json:"warm"`
	Tiers    Tiers    `koanf:"tiers" json:"tiers"`
	Audit    Audit    `koanf:"audit" json:"audit"`
	Worker   Worker   `koanf:"worker" json:"worker"`
	Place    Place    `koanf:"place" json:"place"`
	StateDir string   `koanf:"state" json:"state"`
	Policies []string `koanf:"policies" json:"policies,omitempty"`
	// TierPolicies say where batches belong.
	TierPolicies []string `koanf:"tier_policies" json:"tier_policies,omitempty"`
	// PolicyKeys lists the keys whose policy bundles are taken. Empty: the list in
	// StateDir.
	PolicyKeys string `koanf:"policy_keys" json:"policy_keys,omitempty"`
	// Actors is the document that says who has which role; Actor is who uses the
	// command line, where the NATS credentials do not tell.
	Actors string `koanf:"actors" json:"actors,omitempty"`
	Actor  string `koanf:"actor" json:"actor,omitempty"`
	// StampKey signs and verifies the stamps of judged events; every process of a
	// deployment has the same. Empty: the one in StateDir.
	StampKey Secret `koanf:"stamp_key" json:"stamp_key,omitempty"`

	sources map[string]string
}

// NATS says how to reach the bus.
type NATS struct {
	URL      Endpoint `koanf:"url" json:"url"`
	User     string   `koanf:"user" json:"user,omitempty"`
	Password Secret   `koanf:"password" json:"password,omitempty"`
	Token    Secret   `koanf:"token" json:"token,omitempty"`
	Creds    string   `koanf:"creds" json:"creds,omitempty"` // credentials file
	Inbox    string   `koanf:"inbox" json:"inbox,omitempty"` // prefix of this user's inboxes
}

// Temporal says how to reach the orchestrator.
type Temporal struct {
	Address   string `koanf:"address" json:"address"`
	Namespace string `koanf:"namespace" json:"namespace"`
	TaskQueue string `koanf:"task_queue" json:"task_queue"`
	APIKey    Secret `koanf:"api_key" json:"api_key,omitempty"`
	UI        string `koanf:"ui" json:"ui,omitempty"` // base URL of the web UI, for links
	TLS       bool   `koanf:"tls" json:"tls"`         // implied by APIKey
}

// Flight says how batches travel from host to host directly. Without an address
// nothing is given out.
type Flight struct {
	Addr      string `koanf:"addr" json:"addr,omitempty"`           // HOST:PORT to listen on
	Advertise string `koanf:"advertise" json:"advertise,omitempty"` // HOST:PORT for other hosts
	Token     Secret `koanf:"token" json:"token,omitempty"`
	Cert      string `koanf:"cert" json:"cert,omitempty"` // PEM files
	Key       string `koanf:"key" json:"key,omitempty"`
	CA        string `koanf:"ca" json:"ca,omitempty"`
	Insecure  bool   `koanf:"insecure" json:"insecure,omitempty"`
}

// Audit says where the checkpoints of the decision log are: in an object store,
// which should have a credential of its own, or a directory. Zero values take the
// defaults of stokehold.Audit.
type Audit struct {
	Endpoint   Endpoint      `koanf:"endpoint" json:"endpoint,omitempty"`
	Region     string        `koanf:"region" json:"region,omitempty"`
	Bucket     string        `koanf:"bucket" json:"bucket,omitempty"`
	AccessKey  Secret        `koanf:"access_key" json:"access_key,omitempty"`
	SecretKey  Secret        `koanf:"secret_key" json:"secret_key,omitempty"`
	Dir        string        `koanf:"dir" json:"dir,omitempty"`
	KeyFile    string        `koanf:"key_file" json:"key_file,omitempty"`
	Origin     string        `koanf:"origin" json:"origin,omitempty"`
	MaxEntries int           `koanf:"max_entries" json:"max_entries,omitempty"`
	MaxDelay   time.Duration `koanf:"max_delay" json:"max_delay,omitempty"`
}

// Worker says what this process is, to policies and to the ledger of budgets.
type Worker struct {
	Name         string `koanf:"name" json:"name,omitempty"`
	Class        string `koanf:"class" json:"class,omitempty"`
	Region       string `koanf:"region" json:"region,omitempty"`
	Accelerator  string `koanf:"accelerator" json:"accelerator,omitempty"` // e.g. nvidia-h100
	Accelerators int    `koanf:"accelerators" json:"accelerators,omitempty"`
	Address      string `koanf:"address" json:"address,omitempty"`
}

// Place says where this process and the cold tier are, as labels of data name regions,
// uses and classes of personal data. What is empty is not known, and counts against the
// place.
type Place struct {
	Region     string   `koanf:"region" json:"region,omitempty"`
	Use        string   `koanf:"use" json:"use,omitempty"` // of the models put into service
	PII        []string `koanf:"pii" json:"pii,omitempty"` // classes that may be here; *: all
	ColdRegion string   `koanf:"cold_region" json:"cold_region,omitempty"`
	ColdPII    []string `koanf:"cold_pii" json:"cold_pii,omitempty"`
}

// Here is where this process is.
func (p Place) Here() events.Place { return events.Place{Region: p.Region, Use: p.Use, PII: p.PII} }

// Cold is where the cold tier is.
func (p Place) Cold() events.Place { return events.Place{Region: p.ColdRegion, PII: p.ColdPII} }

// Hot is the shared memory that batches are kept in. Zero values take the
// defaults of stokehold.Config.
type Hot struct {
	Bytes     Size          `koanf:"bytes" json:"bytes,omitempty"`
	Limit     Size          `koanf:"limit" json:"limit,omitempty"` // with what child processes wrote
	Wait      time.Duration `koanf:"wait" json:"wait,omitempty"`   // for room
	Prefault  bool          `koanf:"prefault" json:"prefault,omitempty"`
	HugePages HugePages     `koanf:"huge_pages" json:"huge_pages,omitempty"`
}

// defaults also lists every key there is: a key that is not here is a fault.
func defaults() map[string]any {
	known := map[string]any{
		"nats.url": "nats://127.0.0.1:4222", "nats.user": "", "nats.password": "", "nats.token": "", "nats.creds": "", "nats.inbox": "",
		"temporal.address": "127.0.0.1:7233", "temporal.namespace": "default", "temporal.task_queue": "stokehold",
		"temporal.api_key": "", "temporal.ui": "", "temporal.tls": false,
		"flight.addr": "", "flight.advertise": "", "flight.token": "", "flight.cert": "", "flight.key": "", "flight.ca": "", "flight.insecure": false,
		"hot.bytes": "", "hot.limit": "", "hot.wait": "0s", "hot.prefault": false, "hot.huge_pages": "",
		"audit.endpoint": "", "audit.region": "", "audit.bucket": "", "audit.access_key": "", "audit.secret_key": "", "audit.dir": "",
		"audit.key_file": "", "audit.origin": "", "audit.max_entries": 0, "audit.max_delay": "0s",
		"worker.name": "", "worker.class": "", "worker.region": "", "worker.accelerator": "", "worker.accelerators": 0, "worker.address": "",
		"place.region": "", "place.use": "", "place.pii": []string{}, "place.cold_region": "", "place.cold_pii": []string{},
		"state": DefaultStateDir, "policies": []string{}, "policy_keys": "", "actors": "", "actor": "", "stamp_key": "",
	}
	maps.Copy(known, tierDefaults())
	return known
}

// Conventional environment names, those of the tools that people already use.
func conventional() map[string]string {
	return map[string]string{
		"NATS_URL": "nats.url", "NATS_USER": "nats.user", "NATS_PASSWORD": "nats.password",
		"NATS_TOKEN": "nats.token", "NATS_CREDS": "nats.creds",
		"TEMPORAL_ADDRESS": "temporal.address", "TEMPORAL_NAMESPACE": "temporal.namespace",
		"TEMPORAL_TASK_QUEUE": "temporal.task_queue", "TEMPORAL_API_KEY": "temporal.api_key", "TEMPORAL_TLS": "temporal.tls",
		"S3_ENDPOINT": "s3.endpoint", "S3_BUCKET": "s3.bucket", "AWS_REGION": "s3.region",
		"AWS_ACCESS_KEY_ID": "s3.access_key", "AWS_SECRET_ACCESS_KEY": "s3.secret_key",
		"AWS_SESSION_TOKEN": "s3.session_token", "AWS_CA_BUNDLE": "s3.ca",
	}
}

// endpoints names, for each server, the key that says where it is. What a
// running `dev` told of one server is used whole or not at all: its credentials
// must never travel to a server that it did not name, nor others' to it.
func endpoints() map[string]string {
	return map[string]string{"nats.": "nats.url", "temporal.": "temporal.address", "s3.": "s3.endpoint"}
}

// Options are the inputs of Load; the zero value reads the process's own.
type Options struct {
	Flags   *pflag.FlagSet // registered by Flags; nil: none
	Environ []string       // nil: os.Environ()
	Dir     string         // where DefaultFile and DefaultStateDir are looked for; "": the working directory
	// Discover finds a running dev; nil: none is looked for.
	Discover Discover
}

// Flags registers the flags that every command understands.
func Flags(fs *pflag.FlagSet) {
	fs.String("config", "", "configuration `file` (default ./"+DefaultFile+" when it exists)")
	fs.String("state", "", "state `directory` of the embedded stack (STOKEHOLD_STATE, default ./"+DefaultStateDir+")")
	fs.String("actors", "", "who has which role: a `file` (STOKEHOLD_ACTORS)")
	fs.StringSlice("tier-policies", nil, "where batches belong: a `file` or directory of tier policies; repeatable (STOKEHOLD_TIER_POLICIES)")
	fs.StringSlice("policy", nil, "more rules: a policy `file` or directory; repeatable (STOKEHOLD_POLICIES)")
}

// ServerFlags registers the flags that say where the servers are. No flag takes a
// secret: a command line is readable by every user of the machine.
func ServerFlags(fs *pflag.FlagSet) {
	fs.String("nats-url", "", "NATS server `URL` (NATS_URL)")
	fs.String("nats-creds", "", "NATS credentials `file` (NATS_CREDS)")
	fs.String("temporal-address", "", "Temporal frontend `host:port` (TEMPORAL_ADDRESS)")
	fs.String("temporal-namespace", "", "Temporal namespace `name` (TEMPORAL_NAMESPACE)")
	fs.String("s3-endpoint", "", "S3 endpoint `URL` (S3_ENDPOINT)")
	fs.String("s3-bucket", "", "S3 bucket `name` (S3_BUCKET)")
	fs.String("s3-region", "", "S3 region `name` (AWS_REGION)")
	s3Flags(fs)
	fs.String("actor", "", "your `name` in the document of actors, where the NATS credentials do not tell (STOKEHOLD_ACTOR)")
	fs.String("hot-bytes", "", "`size` of the shared memory for batches, e.g. 512MiB (STOKEHOLD_HOT_BYTES)")
	fs.String("warm-bytes", "", "`size` that the batches on this disk are kept below by tier policies (STOKEHOLD_WARM_BYTES)")
	fs.String("flight-addr", "", "give batches out to other hosts at `host:port` (STOKEHOLD_FLIGHT_ADDR)")
	fs.String("flight-advertise", "", "where other hosts reach that, `host:port` (STOKEHOLD_FLIGHT_ADVERTISE)")
}

func flagKeys() map[string]string {
	keys := map[string]string{
		"nats-url": "nats.url", "nats-creds": "nats.creds", "temporal-address": "temporal.address",
		"temporal-namespace": "temporal.namespace", "s3-endpoint": "s3.endpoint", "s3-bucket": "s3.bucket",
		"s3-region": "s3.region", "hot-bytes": "hot.bytes", "flight-addr": "flight.addr", "flight-advertise": "flight.advertise", "policy": "policies", "actors": "actors", "actor": "actor", "state": "state",
	}
	maps.Copy(keys, tierFlagKeys())
	return keys
}

// Load resolves the configuration. Errors wrap ErrConfig and name the file,
// variable or flag at fault.
func Load(o Options) (Config, error) {
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	file, err := readFile(o)
	if err != nil {
		return Config{}, err
	}
	generic, prefixed := readEnv(o.Environ)
	flags := koanf.New(".")
	if o.Flags != nil {
		p := posflag.ProviderWithFlag(o.Flags, ".", nil, func(f *pflag.Flag) (string, any) {
			if !f.Changed {
				return "", nil
			}
			return flagKeys()[f.Name], posflag.FlagVal(o.Flags, f)
		})
		if err := flags.Load(p, nil); err != nil {
			return Config{}, fmt.Errorf("%w: flags: %w", ErrConfig, err)
		}
	}
	layers := []layer{
		{"the default", flat(defaults())},
		{"the configuration file", file},
		{"the environment", generic},
		{"the environment", prefixed},
		{"a flag", flags},
	}
	found, err := discover(o, layers)
	if err != nil {
		return Config{}, err
	}
	layers = withDiscovered(layers, found)

	k, c := koanf.New("."), Config{sources: map[string]string{}}
	for _, l := range layers {
		for _, key := range l.k.Keys() {
			c.sources[key] = l.name
		}
		if err := k.Merge(l.k); err != nil {
			return Config{}, fmt.Errorf("%w: %s: %w", ErrConfig, l.name, err)
		}
	}
	if err := k.Unmarshal("", &c); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	c.NATS.splitUser()
	return c, c.validate()
}

// splitUser moves credentials out of the URL, where the NATS tools accept them,
// to their own fields: a URL ends up in logs.
func (n *NATS) splitUser() {
	u, err := url.Parse(n.URL.Reveal())
	if err != nil || u.User == nil {
		return
	}
	if password, ok := u.User.Password(); ok {
		n.User, n.Password = u.User.Username(), Secret(password)
	} else {
		n.Token = Secret(u.User.Username())
	}
	u.User = nil
	n.URL = Endpoint(u.String())
}

// Source says where the value of a key such as "nats.url" came from.
func (c Config) Source(key string) string { return c.sources[key] }

func (c Config) validate() error {
	var faults []error
	bad := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: %s (from %s): %s", ErrConfig, key, c.Source(key), fmt.Sprintf(format, args...)))
	}
	if _, err := c.NATS.URL.HostPort("4222"); err != nil {
		bad("nats.url", "%v", err)
	}
	if _, err := Endpoint(c.Temporal.Address).HostPort("7233"); err != nil {
		bad("temporal.address", "%v", err)
	}
	c.validateTiers(bad)
	if c.Hot.Bytes != 0 && c.Hot.Bytes < 1<<20 {
		bad("hot.bytes", "%s is too small: give it at least 1MiB", c.Hot.Bytes)
	}
	if c.Hot.Limit != 0 && c.Hot.Limit < c.Hot.Bytes {
		bad("hot.limit", "%s leaves no room for hot.bytes (%s)", c.Hot.Limit, c.Hot.Bytes)
	}
	if c.Hot.Wait < 0 {
		bad("hot.wait", "%v is negative", c.Hot.Wait)
	}
	for key, p := range map[string]events.Place{"place.region": c.Place.Here(), "place.cold_region": c.Place.Cold()} {
		if err := label.CheckPlace(p); err != nil {
			bad(key, "%v", err)
		}
	}
	return errors.Join(faults...)
}

type layer struct {
	name string
	k    *koanf.Koanf
}

func flat(m map[string]any) *koanf.Koanf {
	k := koanf.New(".")
	// confmap cannot fail: it hands back the map it was given.
	_ = k.Load(confmap.Provider(m, "."), nil)
	return k
}

func readFile(o Options) (*koanf.Koanf, error) {
	k := koanf.New(".")
	path, named := "", false
	if o.Flags != nil {
		if f := o.Flags.Lookup("config"); f != nil && f.Changed {
			path, named = f.Value.String(), true
		}
	}
	if !named {
		if v := lookup(o.Environ, "STOKEHOLD_CONFIG"); v != "" {
			path, named = v, true
		}
	}
	if path == "" {
		path = filepath.Join(o.Dir, DefaultFile)
	}
	raw, err := readSmall(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: configuration file: %w", ErrConfig, err)
	}
	if err := k.Load(rawbytes.Provider(raw), yaml.Parser()); err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, path, strings.ReplaceAll(err.Error(), "\n", " "))
	}
	known := flat(defaults())
	var unknown []string
	for _, key := range k.Keys() {
		if !known.Exists(key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 {
		sort.Strings(unknown)
		return nil, fmt.Errorf("%w: %s: unknown key %s; known are %s", ErrConfig, path,
			strings.Join(unknown, ", "), strings.Join(known.Keys(), ", "))
	}
	return k, nil
}

// readEnv returns the conventional variables and, apart from them, the stronger
// STOKEHOLD_ ones (STOKEHOLD_NATS_URL for nats.url, and so on).
func readEnv(environ []string) (generic, prefixed *koanf.Koanf) {
	list := func(key, v string) any {
		switch key {
		case "policies", "tier_policies":
			return strings.Split(v, string(os.PathListSeparator))
		case "place.pii", "place.cold_pii":
			return strings.Split(v, ",")
		}
		return v
	}
	generic, prefixed = koanf.New("."), koanf.New(".")
	byName := map[string]string{}
	for key := range defaults() {
		byName["STOKEHOLD_"+strings.ToUpper(strings.ReplaceAll(key, ".", "_"))] = key
	}
	load := func(k *koanf.Koanf, names map[string]string) {
		_ = k.Load(env.Provider(".", env.Opt{
			EnvironFunc: func() []string { return environ },
			TransformFunc: func(name, v string) (string, any) {
				if v == "" {
					return "", nil
				}
				return names[name], list(names[name], v)
			},
		}), nil)
	}
	load(generic, conventional())
	load(prefixed, byName)
	return generic, prefixed
}

func lookup(environ []string, name string) string {
	for _, e := range environ {
		if k, v, _ := strings.Cut(e, "="); k == name {
			return v
		}
	}
	return ""
}

// discover returns what a running dev told of the servers that nobody named.
func discover(o Options, layers []layer) (*koanf.Koanf, error) {
	if o.Discover == nil {
		return koanf.New("."), nil
	}
	state := filepath.Join(o.Dir, DefaultStateDir)
	for _, l := range layers[1:] {
		if s := l.k.String("state"); s != "" {
			state = s
		}
	}
	a, running, err := o.Discover(state)
	if err != nil {
		return nil, fmt.Errorf("%w: state directory %s: %w", ErrConfig, state, err)
	}
	if !running {
		return koanf.New("."), nil
	}
	found := a.keys()
	for prefix, endpoint := range endpoints() {
		for _, l := range layers[1:] {
			if l.k.Exists(endpoint) {
				for key := range found {
					if strings.HasPrefix(key, prefix) {
						delete(found, key)
					}
				}
			}
		}
	}
	return flat(found), nil
}

// withDiscovered puts the discovered layer above the conventional environment
// for the servers it names. Many people have AWS_ACCESS_KEY_ID set for good:
// those credentials are not the dev stack's.
func withDiscovered(layers []layer, found *koanf.Koanf) []layer {
	out := make([]layer, 0, len(layers)+1)
	out = append(out, layers[:3]...)
	out = append(out, layer{"the running dev", found})
	return append(out, layers[3:]...)
}

func readSmall(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if st.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return os.ReadFile(path)
}
