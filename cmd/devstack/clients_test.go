package devstack_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"

	"github.com/stokehold/stokehold/cmd/devstack"
)

func natsClient(t testing.TB, e devstack.Endpoints) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(e.NATSURL, nats.UserInfo(e.NATSUser, e.NATSPassword.Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func temporalClient(t testing.TB, e devstack.Endpoints) client.Client {
	t.Helper()
	c, err := client.DialContext(t.Context(), client.Options{
		HostPort: e.TemporalAddress, Namespace: e.Namespace,
		Logger: log.NewStructuredLogger(slog.New(slog.DiscardHandler)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func s3Client(e devstack.Endpoints) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &e.S3Endpoint, Region: e.S3Region, UsePathStyle: true,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: e.S3AccessKey, SecretAccessKey: e.S3SecretKey.Reveal()}, nil
		}),
	})
}

func putObject(ctx context.Context, c *s3.Client, key, body string) error {
	_, err := c.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(devstack.Bucket), Key: &key, Body: strings.NewReader(body), Metadata: map[string]string{"origin": "test"},
	})
	return err
}

func getObject(ctx context.Context, c *s3.Client, key string) (string, error) {
	o, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(devstack.Bucket), Key: &key})
	if err != nil {
		return "", err
	}
	if o.Metadata["origin"] != "test" {
		err = fmt.Errorf("metadata of %s is %v", key, o.Metadata)
	}
	body, readErr := io.ReadAll(o.Body)
	return string(body), errors.Join(err, readErr, o.Body.Close())
}
