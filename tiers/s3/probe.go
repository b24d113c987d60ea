package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/tiers"
)

const (
	// probePrefix is where probes put their objects; SweepPartial removes what a
	// probe that was killed has left.
	probePrefix = "stokehold-probe/"
	// A server of which 4 concurrent conditional writes had several winners in more
	// than half of all rounds is found out in 6 rounds with a certainty of 99%.
	probeRounds  = 6
	probeWriters = 4
	probeBytes   = 64 << 10 // of a conditional write: the longer, the more they overlap
	probeTimeout = 2 * time.Minute
)

// Guarantees implements tiers.Guarantor: what the last probe found.
func (s *Store) Guarantees() tiers.Guarantees { return *s.guarantees.Load() }

// Probe finds out what the endpoint really keeps: it puts some dozens of small
// objects under "stokehold-probe/", and removes them. Open calls it. What it finds
// is from then on relied on: objects are protected by a CRC only if the endpoint was seen
// to refuse a wrong one. A guarantee that could not be tried is not given, and a
// note says why. It fails only where the store cannot be used at all.
func (s *Store) Probe(ctx context.Context) (tiers.Guarantees, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p := &probe{Store: s, dir: probePrefix + strings.ToLower(rand.Text()) + "/", found: tiers.Guarantees{Syncs: s.settings.Syncs}}
	defer p.clean(ctx)
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"read after write", p.readAfterWrite}, // first: it finds out whether we may write
		{"list after write", p.listAfterWrite},
		{"CRC64NVME", p.crcCompared},
		{"SHA256", p.shaCompared},
		{"conditional write", p.conditional},
		{"conditional write in parts", p.conditionalParts},
		{"versions", p.versioned},
	}
	for i, step := range steps {
		err := step.run(ctx)
		if ctx.Err() != nil || i == 0 && err != nil {
			return p.found, s.fail(ctx, "probe ("+step.name+")", p.dir, errors.Join(err, ctx.Err()))
		}
		if err != nil {
			p.found.Notes = append(p.found.Notes, step.name+": "+s.fail(ctx, "probe", p.dir, err).Error())
		}
	}
	p.found.Probed = time.Now().UTC()
	if s.wire.seen.Load() {
		p.found.ClockSkew = time.Duration(s.wire.skew.Load()).Round(time.Second)
	}
	s.crc.Store(slices.Contains(p.found.Checksums, crcAlgorithmCRC))
	s.guarantees.Store(&p.found)
	return p.found, nil
}

type probe struct {
	*Store
	dir   string
	found tiers.Guarantees

	mu   sync.Mutex
	keys []string
}

func (p *probe) key(name string) string {
	key := p.dir + name
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, key)
	return key
}

func (p *probe) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	for _, key := range p.keys {
		if p.Delete(ctx, key) != nil {
			return // SweepPartial removes them
		}
	}
}

// write puts an object with these headers, signed as a whole.
func (p *probe) write(ctx context.Context, key string, body []byte, signed string, headers map[string]string, ifAbsent bool) error {
	o := minio.PutObjectOptions{ContentType: contentType, ServerSideEncryption: p.sse, UserMetadata: headers, DisableContentSha256: true}
	if ifAbsent {
		o.SetMatchETagExcept("*")
	}
	if signed == "" {
		sum := sha256.Sum256(body)
		signed = hex.EncodeToString(sum[:])
	}
	_, err := p.client.PutObject(ctx, p.Bucket, key, bytes.NewReader(body), int64(len(body)), "", signed, o)
	return err
}

func (p *probe) readAfterWrite(ctx context.Context) error {
	p.found.ReadAfterWrite = true
	for i := range probeRounds {
		key := p.key(fmt.Sprintf("read-%d", i))
		body := []byte(key)
		if err := p.write(ctx, key, body, "", nil, false); err != nil {
			return err
		}
		got, err := p.Get(ctx, key)
		if err != nil && !errors.Is(err, tiers.ErrNotFound) {
			return err
		}
		if err := p.client.RemoveObject(ctx, p.Bucket, key, minio.RemoveObjectOptions{}); err != nil {
			return err
		}
		_, gone := p.Get(ctx, key)
		if !bytes.Equal(got, body) || !errors.Is(gone, tiers.ErrNotFound) {
			p.found.ReadAfterWrite = false
		}
	}
	return nil
}

func (p *probe) listAfterWrite(ctx context.Context) error {
	key := p.key("list/a")
	for _, there := range []bool{true, false, true, false} {
		var err error
		if there {
			err = p.write(ctx, key, []byte("x"), "", nil, false)
		} else {
			err = p.client.RemoveObject(ctx, p.Bucket, key, minio.RemoveObjectOptions{})
		}
		if err != nil {
			return err
		}
		listed := false
		for o, err := range p.List(ctx, p.dir+"list/") {
			if err != nil {
				return err
			}
			listed = listed || o.Key == key
		}
		if listed != there {
			return nil
		}
	}
	p.found.ListAfterWrite = true
	return nil
}

// crcCompared: a wrong CRC is refused, a right one is kept and given back.
func (p *probe) crcCompared(ctx context.Context) error {
	body := []byte("checksummed")
	wrong := p.write(ctx, p.key("crc-wrong"), body, "", map[string]string{crcHeader: crcOf([]byte("other"))}, false)
	key := p.key("crc-right")
	if err := p.write(ctx, key, body, "", map[string]string{crcHeader: crcOf(body)}, false); err != nil {
		return err
	}
	var o minio.GetObjectOptions
	o.ServerSideEncryption = p.customer
	o.Set(crcModeHeader, "ENABLED")
	rc, info, _, err := p.client.GetObject(ctx, p.Bucket, key, o)
	if err != nil {
		return err
	}
	if err := rc.Close(); err != nil {
		return err
	}
	if refused(wrong) && info.ChecksumCRC64NVME == crcOf(body) {
		p.found.Checksums = append(p.found.Checksums, crcAlgorithmCRC)
	}
	return nil
}

// shaCompared: a body other than the one whose hash was signed is refused.
func (p *probe) shaCompared(ctx context.Context) error {
	sum := sha256.Sum256([]byte("other"))
	err := p.write(ctx, p.key("sha-wrong"), []byte("signed"), hex.EncodeToString(sum[:]), nil, false)
	if refused(err) {
		p.found.Checksums = append(p.found.Checksums, "SHA256")
		return nil
	}
	return err
}

// refused reports whether the endpoint saw that content and checksum differ.
func refused(err error) bool {
	return isStatus(err, http.StatusBadRequest) || errors.Is(err, arrowio.ErrCorrupt)
}

// conditional counts the winners of concurrent conditional writes.
func (p *probe) conditional(ctx context.Context) error {
	one := true
	for round := range probeRounds {
		key := p.key(fmt.Sprintf("absent-%d", round))
		errs := make([]error, probeWriters)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = p.write(ctx, key, bytes.Repeat([]byte{byte(i)}, probeBytes), "", nil, true) })
		}
		wg.Wait()
		winners, winner := 0, 0
		for i, err := range errs {
			switch {
			case err == nil:
				winners, winner = winners+1, i
			case !isExists(err) && !isStatus(err, http.StatusConflict): // 409: another is writing, try again
				return err
			}
		}
		p.found.MostWinners = max(p.found.MostWinners, winners)
		got, err := p.Get(ctx, key)
		if err != nil {
			return err
		}
		one = one && winners == 1 && bytes.Equal(got, bytes.Repeat([]byte{byte(winner)}, probeBytes))
	}
	p.found.ConditionalPut = one
	return nil
}

// conditionalParts: an upload in parts with the condition is refused where there is
// an object, and is not where there is none.
func (p *probe) conditionalParts(ctx context.Context) error {
	key := p.key("parts")
	for _, want := range []bool{true, false} {
		u := upload{Store: &Store{settings: p.settings, client: p.client, wire: p.wire}, key: key, body: []byte("in parts"), ifAbsent: true}
		err := u.parts(ctx)
		if err != nil && !isExists(err) {
			return err
		}
		if (err == nil) != want {
			return nil
		}
	}
	p.found.ConditionalMultipart = true
	return nil
}

func (p *probe) versioned(ctx context.Context) error {
	v, err := p.client.GetBucketVersioning(ctx, p.Bucket)
	if err != nil {
		if code := minio.ToErrorResponse(err).Code; code == "NotImplemented" || code == "VersioningNotConfigured" || isStatus(err, http.StatusNotFound) {
			return nil
		}
		return err
	}
	p.found.Versioned = v.Enabled() || v.Suspended()
	return nil
}
