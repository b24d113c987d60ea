package s3

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

// roleTimeout bounds one question to a metadata service, which on a machine
// without one is not answered at all.
const roleTimeout = 5 * time.Second

// provider returns where the credentials come from.
func (s *settings) provider() *credentials.Credentials {
	if s.AccessKey != "" {
		return credentials.NewStaticV4(s.AccessKey, s.SecretKey, s.SessionToken)
	}
	role := &credentials.IAM{Region: s.Region, Client: &http.Client{Timeout: roleTimeout, Transport: s.transport}}
	if os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "" {
		role.Endpoint = s.STSEndpoint // elsewhere it would name the metadata service
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{},
		&credentials.EnvMinio{},
		&credentials.FileAWSCredentials{Profile: s.Profile},
		role,
	})
}

// usable asks the provider once, so that missing credentials are an error of Open
// and not an anonymous request.
func usable(ctx context.Context, p *credentials.Credentials) error {
	type answer struct {
		v   credentials.Value
		err error
	}
	got := make(chan answer, 1)
	go func() { // bounded by roleTimeout for each of its requests
		v, err := p.GetWithContext(nil)
		got <- answer{v, err}
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case a := <-got:
		if a.err != nil || a.v.AccessKeyID == "" || a.v.SecretAccessKey == "" {
			// The cause is left out: it may quote an answer that holds a token.
			return fmt.Errorf("%w: no credentials: none are configured, in AWS_ACCESS_KEY_ID, in the shared file, by a web identity or of a role", ErrAccess)
		}
		return nil
	}
}
