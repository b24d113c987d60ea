package main

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what clients without our hash send
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/stokehold/stokehold/internal/benchtable"
	"github.com/stokehold/stokehold/internal/minioserver"
	"github.com/stokehold/stokehold/tiers/s3"
)

const (
	objectBytes = 64 << 20
	objects     = 8 // of a round of a case
	bucket      = "bench"
)

// s3Group measures objects to and from a real MinIO on loopback, for each second
// of this process's processor time, user and system: the server is another process, and
// what it costs is not ours. The cases take turns.
func s3Group(s settings) (rows []benchtable.Row, err error) {
	ctx := context.Background()
	bin, err := minioserver.Build(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "stokehold-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	server, err := minioserver.Start(ctx, bin, minioserver.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	b, err := newS3Bench(ctx, server)
	if err != nil {
		return nil, err
	}
	defer b.ours.Close()

	cases := []struct {
		name string
		run  func(ctx context.Context) error
	}{
		{putDefault, b.putDefault},
		{putOurs, b.putOurs},
		{putHashed, b.putHashed},
		{putUnsigned, b.putUnsigned},
		{getRaw, b.getRaw},
		{getOurs, b.getOurs},
		{rangeRaw, b.rangeRaw},
		{rangeOurs, b.rangeOurs},
		{hashSHA, b.sha},
		{hashCRC, b.crc},
		{hashMD5, b.md5},
	}
	rates := map[string][]float64{}
	for round := range s.rounds + 1 { // the first warms up
		for _, c := range cases {
			if !s.wants("s3 " + c.name) {
				continue
			}
			runtime.GC()
			before := processorTime()
			for range objects {
				if err := c.run(ctx); err != nil {
					return nil, fmt.Errorf("%s: %w", c.name, err)
				}
			}
			if used := processorTime() - before; round > 0 {
				rates[c.name] = append(rates[c.name], float64(objects*objectBytes)/1e9/used)
			}
		}
	}
	for _, pair := range [][2]string{
		{putOurs, putDefault}, {putHashed, putDefault}, {putOurs, putUnsigned},
		{getOurs, getRaw}, {rangeOurs, rangeRaw},
		{hashSHA, hashMD5}, {hashCRC, hashSHA},
	} {
		ours, base := middle(rates[pair[0]]), middle(rates[pair[1]])
		if ours == 0 || base == 0 {
			continue
		}
		rows = append(rows, benchtable.Row{
			Case: "s3 " + pair[0] + ", vs " + pair[1], Unit: "GB per client CPU second",
			Value: ours, Baseline: base, Ratio: ours / base,
		})
	}
	return rows, nil
}

const (
	putDefault  = "minio-go put"
	putUnsigned = "minio-go put in one request without payload hash"
	putOurs     = "put of a key that names the hash"
	putHashed   = "put and computing the hash"
	getRaw      = "net/http get into memory"
	getOurs     = "get, checksum verified"
	rangeRaw    = "net/http get into a buffer that is there"
	rangeOurs   = "read range into a buffer that is there"
	hashSHA     = "SHA-256"
	hashCRC     = "CRC-64/NVME"
	hashMD5     = "MD5"
)

func middle(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

type s3Bench struct {
	ours   *s3.Store
	theirs *minio.Client
	http   *http.Client
	url    string // of the object that is read
	key    string
	body   []byte
	buffer []byte
}

func newS3Bench(ctx context.Context, server *minioserver.Server) (*s3Bench, error) {
	b := &s3Bench{body: make([]byte, objectBytes), buffer: make([]byte, objectBytes)}
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b.body) // never fails
	b.key = fmt.Sprintf("batches/sha256/%x.parquet", sha256.Sum256(b.body))
	var err error
	if b.ours, err = s3.Open(ctx, s3.Config{
		Endpoint: server.URL, Bucket: bucket, AccessKey: server.AccessKey, SecretKey: server.SecretKey, CreateBucket: true,
	}); err != nil {
		return nil, err
	}
	if b.theirs, err = minio.New(strings.TrimPrefix(server.URL, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""), Region: "us-east-1",
	}); err != nil {
		return nil, err
	}
	if err := b.ours.Put(ctx, b.key, b.body); err != nil {
		return nil, err
	}
	u, err := b.theirs.PresignedGetObject(ctx, bucket, b.key, time.Hour, nil)
	if err != nil {
		return nil, err
	}
	b.url, b.http = u.String(), &http.Client{Transport: &http.Transport{DisableCompression: true}}
	return b, nil
}

func (b *s3Bench) putOurs(ctx context.Context) error { return b.ours.Put(ctx, b.key, b.body) }

func (b *s3Bench) putHashed(ctx context.Context) error {
	return b.ours.Put(ctx, fmt.Sprintf("batches/sha256/%x.parquet", sha256.Sum256(b.body)), b.body)
}

func (b *s3Bench) putDefault(ctx context.Context) error {
	_, err := b.theirs.PutObject(ctx, bucket, "theirs", bytes.NewReader(b.body), objectBytes, minio.PutObjectOptions{})
	return err
}

func (b *s3Bench) putUnsigned(ctx context.Context) error {
	_, err := b.theirs.PutObject(ctx, bucket, "theirs", bytes.NewReader(b.body), objectBytes,
		minio.PutObjectOptions{DisableContentSha256: true, DisableMultipart: true})
	return err
}

func (b *s3Bench) getOurs(ctx context.Context) error {
	got, err := b.ours.Get(ctx, b.key)
	return whole(got, err)
}

func (b *s3Bench) getRaw(ctx context.Context) error {
	return b.raw(ctx, func(size int64) []byte { return make([]byte, size) })
}

func (b *s3Bench) rangeOurs(ctx context.Context) error {
	n, err := b.ours.ReadRange(ctx, b.key, 0, b.buffer)
	return whole(b.buffer[:n], err)
}

func (b *s3Bench) rangeRaw(ctx context.Context) error {
	return b.raw(ctx, func(size int64) []byte { return b.buffer[:size] })
}

// raw is the least that has the object in memory.
func (b *s3Bench) raw(ctx context.Context, memory func(int64) []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url, nil)
	if err != nil {
		return err
	}
	res, err := b.http.Do(req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.Join(errors.New(res.Status), res.Body.Close())
	}
	dst := memory(res.ContentLength)
	_, err = io.ReadFull(res.Body, dst)
	return whole(dst, errors.Join(err, res.Body.Close()))
}

func whole(got []byte, err error) error {
	if err == nil && len(got) != objectBytes {
		err = fmt.Errorf("%d bytes", len(got))
	}
	return err
}

func (b *s3Bench) sha(context.Context) error { sha256.Sum256(b.body); return nil }

func (b *s3Bench) md5(context.Context) error { md5.Sum(b.body); return nil } //nolint:gosec // measured only

func (b *s3Bench) crc(context.Context) error {
	minio.ChecksumCRC64NVME.ChecksumBytes(b.body)
	return nil
}
