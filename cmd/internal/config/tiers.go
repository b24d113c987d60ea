package config

import (
	"slices"
	"time"

	"github.com/spf13/pflag"

	"github.com/stokehold/stokehold/tiers"
)

// S3 says how to reach the cold tier. Without an endpoint there is none. Fields are
// those of stokehold.S3, which explains them.
type S3 struct {
	Endpoint     Endpoint `koanf:"endpoint" json:"endpoint"`
	Region       string   `koanf:"region" json:"region"`
	Bucket       string   `koanf:"bucket" json:"bucket"`
	AccessKey    Secret   `koanf:"access_key" json:"access_key,omitempty"`
	SecretKey    Secret   `koanf:"secret_key" json:"secret_key,omitempty"`
	SessionToken Secret   `koanf:"session_token" json:"session_token,omitempty"`
	Profile      string   `koanf:"profile" json:"profile,omitempty"`
	STSEndpoint  Endpoint `koanf:"sts_endpoint" json:"sts_endpoint,omitempty"`
	Addressing   string   `koanf:"addressing" json:"addressing,omitempty"`

	CA         string   `koanf:"ca" json:"ca,omitempty"` // PEM files
	ClientCert string   `koanf:"client_cert" json:"client_cert,omitempty"`
	ClientKey  string   `koanf:"client_key" json:"client_key,omitempty"`
	Proxy      Endpoint `koanf:"proxy" json:"proxy,omitempty"`

	Encryption   string `koanf:"encryption" json:"encryption,omitempty"`
	KMSKeyID     string `koanf:"kms_key_id" json:"kms_key_id,omitempty"`
	CustomerKey  Secret `koanf:"customer_key" json:"customer_key,omitempty"`
	StorageClass string `koanf:"storage_class" json:"storage_class,omitempty"`
	Syncs        bool   `koanf:"syncs" json:"syncs,omitempty"`

	MaxObjectBytes Size          `koanf:"max_object_bytes" json:"max_object_bytes,omitempty"`
	PartBytes      Size          `koanf:"part_bytes" json:"part_bytes,omitempty"`
	Concurrency    int           `koanf:"concurrency" json:"concurrency,omitempty"`
	Retries        int           `koanf:"retries" json:"retries,omitempty"`
	StallTimeout   time.Duration `koanf:"stall_timeout" json:"stall_timeout,omitempty"`
}

// Warm is the directory of batches on this host's disk.
type Warm struct {
	Bytes Size `koanf:"bytes" json:"bytes,omitempty"` // quota, for tier policies; 0: none
}

// Tiers says how tier policies are carried out. Zero values take the defaults of
// stokehold.Tiering.
type Tiers struct {
	Every              time.Duration `koanf:"every" json:"every,omitempty"`
	Grace              time.Duration `koanf:"grace" json:"grace,omitempty"`
	MoveBytesPerSecond Size          `koanf:"move_bytes_per_second" json:"move_bytes_per_second,omitempty"`
	MoveConcurrency    int           `koanf:"move_concurrency" json:"move_concurrency,omitempty"`
	ColdCodec          string        `koanf:"cold_codec" json:"cold_codec,omitempty"`
	SweepEvery         time.Duration `koanf:"sweep_every" json:"sweep_every,omitempty"`
	SweepGrace         time.Duration `koanf:"sweep_grace" json:"sweep_grace,omitempty"`
}

func tierDefaults() map[string]any {
	return map[string]any{
		"s3.endpoint": "", "s3.region": "us-east-1", "s3.bucket": "stokehold", "s3.access_key": "", "s3.secret_key": "",
		"s3.session_token": "", "s3.profile": "", "s3.sts_endpoint": "", "s3.addressing": "", "s3.ca": "", "s3.client_cert": "",
		"s3.client_key": "", "s3.proxy": "", "s3.encryption": "", "s3.kms_key_id": "", "s3.customer_key": "", "s3.storage_class": "",
		"s3.syncs": false, "s3.max_object_bytes": "", "s3.part_bytes": "", "s3.concurrency": 0, "s3.retries": 0, "s3.stall_timeout": "0s",
		"warm.bytes": "", "tier_policies": []string{}, "tiers.every": "0s", "tiers.grace": "0s", "tiers.move_bytes_per_second": "",
		"tiers.move_concurrency": 0, "tiers.cold_codec": "", "tiers.sweep_every": "0s", "tiers.sweep_grace": "0s",
	}
}

// s3Flags registers the flags of the object store that hold no secret.
func s3Flags(fs *pflag.FlagSet) {
	fs.String("s3-addressing", "", "where requests name the bucket: `path` or virtual (STOKEHOLD_S3_ADDRESSING)")
	fs.String("s3-profile", "", "`profile` of the shared credentials file (AWS_PROFILE)")
	fs.String("s3-ca", "", "PEM `file` of the authority of the endpoint's certificate (AWS_CA_BUNDLE)")
	fs.String("s3-encryption", "", "encryption at rest: `SSE-S3`, SSE-KMS or SSE-C (STOKEHOLD_S3_ENCRYPTION)")
	fs.String("s3-kms-key-id", "", "`key` of SSE-KMS (STOKEHOLD_S3_KMS_KEY_ID)")
	fs.String("s3-storage-class", "", "storage `class` of what is put (STOKEHOLD_S3_STORAGE_CLASS)")
	fs.Bool("s3-syncs", false, "the endpoint keeps acknowledged objects through a power cut: only then do batches leave the disk (STOKEHOLD_S3_SYNCS)")
}

// QuotaFlags registers the flags that say how much the tiers of this process hold.
func QuotaFlags(fs *pflag.FlagSet) {
	fs.String("hot", "", "`size` of the shared memory for batches, e.g. 32MiB (STOKEHOLD_HOT_BYTES)")
	fs.String("warm", "", "`size` that the batches on this disk are kept below by tier policies, e.g. 64MiB (STOKEHOLD_WARM_BYTES)")
}

func tierFlagKeys() map[string]string {
	return map[string]string{
		"tier-policies": "tier_policies", "hot": "hot.bytes", "warm": "warm.bytes", "warm-bytes": "warm.bytes",
		"s3-addressing": "s3.addressing", "s3-profile": "s3.profile", "s3-ca": "s3.ca", "s3-encryption": "s3.encryption",
		"s3-kms-key-id": "s3.kms_key_id", "s3-storage-class": "s3.storage_class", "s3-syncs": "s3.syncs",
	}
}

func (c Config) validateTiers(bad func(key, format string, args ...any)) {
	if c.S3.Endpoint != "" {
		if _, err := c.S3.Endpoint.HostPort(""); err != nil {
			bad("s3.endpoint", "%v", err)
		}
		if (c.S3.AccessKey == "") != (c.S3.SecretKey == "") {
			bad("s3.endpoint", "needs both of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither to have credentials looked for")
		}
	}
	if !slices.Contains([]string{"", tiers.CodecParquet, tiers.CodecArrow}, c.Tiers.ColdCodec) {
		bad("tiers.cold_codec", "%q: want %s or %s", c.Tiers.ColdCodec, tiers.CodecParquet, tiers.CodecArrow)
	}
	for key, d := range map[string]time.Duration{
		"s3.stall_timeout": c.S3.StallTimeout, "tiers.every": c.Tiers.Every, "tiers.grace": c.Tiers.Grace,
		"tiers.sweep_every": c.Tiers.SweepEvery, "tiers.sweep_grace": c.Tiers.SweepGrace,
	} {
		if d < 0 {
			bad(key, "%v is negative", d)
		}
	}
}
