package devstack

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/s3response"
)

// TestBackendWithoutExtendedAttributes keeps metadata beside the objects, as on a file system without user
// extended attributes, which the machine of the test has.
func TestBackendWithoutExtendedAttributes(t *testing.T) {
	root, metaDir := t.TempDir(), t.TempDir()
	sidecar, err := meta.NewSideCar(metaDir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := newS3BackendOn(root, metaDir, sidecar)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Shutdown()
	ctx := context.Background()
	if err := createBucket(ctx, b, "owner"); err != nil {
		t.Fatal(err)
	}
	if err := createBucket(ctx, b, "owner"); err != nil {
		t.Fatalf("creating the bucket again: %v", err)
	}
	const body = "body"
	_, err = b.PutObject(ctx, s3response.PutObjectInput{
		Bucket: aws.String(Bucket), Key: aws.String("deep/key"), Body: strings.NewReader(body),
		ContentLength: aws.Int64(int64(len(body))), Metadata: map[string]string{"k": "v"},
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, Bucket, "deep", "key"))
	if err != nil || string(data) != body {
		t.Fatalf("the object's file holds %q (%v)", data, err)
	}
	entries, err := os.ReadDir(metaDir)
	if err != nil || len(entries) == 0 {
		t.Fatalf("no metadata beside the objects: %v, %v", entries, err)
	}
}

func TestBackendKeepsToItsRoot(t *testing.T) {
	b := &s3Backend{root: "/state/s3"}
	for _, bucket := range []string{"..", ".", "", "../..", "../x", "/etc", "a/../..", "stokehold"} {
		if dir := b.dir(bucket); filepath.Dir(dir) != b.root {
			t.Errorf("bucket %q is at %s", bucket, dir)
		}
	}
}
