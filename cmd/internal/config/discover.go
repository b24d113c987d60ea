package config

import "strings"

// Found is what a running `stokehold dev` tells of its servers. A server with an
// empty address does not run there.
type Found struct {
	NATS     NATS
	Temporal Temporal
	S3       S3
}

// Discover asks the state directory stateDir for a running dev; false: none
// runs there. It is given to Load rather than called by it, since it belongs to
// the package that runs the servers.
type Discover func(stateDir string) (Found, bool, error)

func (f Found) keys() map[string]any {
	m := map[string]any{}
	put := func(key, v string) {
		if v != "" {
			m[key] = v
		}
	}
	put("nats.url", f.NATS.URL.Reveal())
	put("nats.user", f.NATS.User)
	put("nats.password", f.NATS.Password.Reveal())
	put("nats.token", f.NATS.Token.Reveal())
	put("temporal.address", f.Temporal.Address)
	put("temporal.namespace", f.Temporal.Namespace)
	put("temporal.task_queue", f.Temporal.TaskQueue)
	put("temporal.ui", f.Temporal.UI)
	if f.S3.Endpoint != "" { // and nothing of what the environment says of another
		for key, v := range tierDefaults() {
			if strings.HasPrefix(key, "s3.") {
				m[key] = v
			}
		}
		m["s3.syncs"] = f.S3.Syncs
	}
	put("s3.endpoint", f.S3.Endpoint.Reveal())
	put("s3.region", f.S3.Region)
	put("s3.bucket", f.S3.Bucket)
	put("s3.access_key", f.S3.AccessKey.Reveal())
	put("s3.secret_key", f.S3.SecretKey.Reveal())
	return m
}
