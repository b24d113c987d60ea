package devstack_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/nats-io/nats.go/jetstream"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"github.com/stokehold/stokehold/cmd/devstack"
)

// What the tests leave in a stack and look for after a restart.
const (
	streamName = "TEST"
	subject    = "test.kept"
	workflowID = "kept"
	objectKey  = "some/where/kept"
	kept       = "kept value"
)

func writeAll(t testing.TB, e devstack.Endpoints) {
	t.Helper()
	writeMessage(t, e)
	_, err := temporalClient(t, e).ExecuteWorkflow(t.Context(), client.StartWorkflowOptions{
		ID: workflowID, TaskQueue: "nobody",
		TypedSearchAttributes: temporal.NewSearchAttributes(
			temporal.NewSearchAttributeKeyKeyword("StokeholdRun").ValueSet(kept),
			temporal.NewSearchAttributeKeyInt64("StokeholdBatches").ValueSet(7)),
	}, "Kept", kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := putObject(t.Context(), s3Client(e), objectKey, kept); err != nil {
		t.Fatal(err)
	}
}

func readAll(t testing.TB, e devstack.Endpoints) {
	t.Helper()
	readMessage(t, e)
	c := temporalClient(t, e)
	d, err := c.DescribeWorkflowExecution(t.Context(), workflowID, "")
	if err != nil {
		t.Fatalf("the workflow is gone: %v", err)
	}
	if got := d.GetWorkflowExecutionInfo().GetType().GetName(); got != "Kept" {
		t.Fatalf("the workflow's type is %q", got)
	}
	if got, err := getObject(t.Context(), s3Client(e), objectKey); err != nil || got != kept {
		t.Fatalf("the object is %q (%v), want %q", got, err, kept)
	}
}

func writeMessage(t testing.TB, e devstack.Endpoints) {
	t.Helper()
	js := natsClient(t, e)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: streamName, Subjects: []string{"test.>"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), subject, []byte(kept)); err != nil {
		t.Fatal(err)
	}
}

func readMessage(t testing.TB, e devstack.Endpoints) {
	t.Helper()
	s, err := natsClient(t, e).Stream(t.Context(), streamName)
	if err != nil {
		t.Fatalf("the stream is gone: %v", err)
	}
	m, err := s.GetLastMsgForSubject(t.Context(), subject)
	if err != nil || string(m.Data) != kept {
		t.Fatalf("the message is %v (%v), want %q", m, err, kept)
	}
}

// testObjects exercises what the cold tier asks of S3.
func testObjects(t *testing.T, e devstack.Endpoints) {
	ctx, c, bucket := t.Context(), s3Client(e), aws.String(e.S3Bucket)
	for _, key := range []string{"a", "deep/er/b", "deep/c"} {
		if err := putObject(ctx, c, key, "body of "+key); err != nil {
			t.Fatal(err)
		}
		if got, err := getObject(ctx, c, key); err != nil || got != "body of "+key {
			t.Fatalf("%s holds %q (%v)", key, got, err)
		}
	}
	list, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket, Prefix: aws.String("deep/")})
	if err != nil || aws.ToString(list.Name) != e.S3Bucket {
		t.Fatalf("list of bucket %q: %v", aws.ToString(list.Name), err)
	}
	var keys []string
	for _, o := range list.Contents {
		keys = append(keys, aws.ToString(o.Key))
	}
	if !slices.Equal(keys, []string{"deep/c", "deep/er/b"}) {
		t.Errorf("list: %v", keys)
	}
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: aws.String("a")})
	if err != nil || aws.ToInt64(head.ContentLength) != int64(len("body of a")) {
		t.Errorf("head: %v, %v", head, err)
	}
	part, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: aws.String("a"), Range: aws.String("bytes=0-3")})
	if err != nil || aws.ToInt64(part.ContentLength) != 4 {
		t.Errorf("range: %v, %v", part, err)
	} else if err := part.Body.Close(); err != nil {
		t.Error(err)
	}
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String("a"), Body: strings.NewReader("other"), IfNoneMatch: aws.String("*")})
	if err == nil {
		t.Error("a conditional put replaced an object")
	}
	testMultipart(t, c, bucket)
	for _, key := range []string{"a", "deep/er/b", "deep/c", "big"} {
		if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: &key}); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	var gone *types.NoSuchKey
	if _, err := getObject(ctx, c, "a"); !errors.As(err, &gone) {
		t.Errorf("a deleted object: %v, want NoSuchKey", err)
	}
	var unknown *types.NoSuchBucket
	_, err = c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("nowhere")})
	if !errors.As(err, &unknown) {
		t.Errorf("an unknown bucket: %v, want NoSuchBucket", err)
	}
	buckets, err := c.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil || len(buckets.Buckets) != 1 || aws.ToString(buckets.Buckets[0].Name) != e.S3Bucket {
		t.Errorf("buckets: %v, %v", buckets, err)
	}
}

func testMultipart(t *testing.T, c *s3.Client, bucket *string) {
	ctx, key := t.Context(), aws.String("big")
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
	var parts []types.CompletedPart
	for i, body := range [][]byte{first, []byte("the end")} {
		n := int32(i + 1)
		p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: bucket, Key: key, UploadId: up.UploadId, PartNumber: &n, Body: bytes.NewReader(body)})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{ETag: p.ETag, PartNumber: &n, ChecksumCRC32: p.ChecksumCRC32})
	}
	if _, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	}); err != nil {
		t.Fatal(err)
	}
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key})
	if err != nil || aws.ToInt64(head.ContentLength) != int64(len(first)+len("the end")) {
		t.Fatalf("head of the object in parts: %v, %v", head, err)
	}
}

// eventually polls until ok, for 15 seconds at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within 15 s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
