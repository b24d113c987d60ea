package devstack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/gofiber/fiber/v3"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3api"
)

const (
	s3MaxConnections = 256
	s3Concurrency    = 64
	s3BufferBytes    = 256 << 10
	s3MaxParts       = 10000
)

// s3Running guards the gateway, which keeps package-level state: one instance at a time, one after another.
var s3Running atomic.Bool //nolint:gochecknoglobals // guards package-level state

type s3Server struct {
	url    string
	log    *logFile
	cancel context.CancelFunc
	done   chan struct{} // closed when the gateway has returned
	err    error         // valid after done
	once   sync.Once
}

func startS3(ctx context.Context, st *state, port int, fail func(error)) (_ *s3Server, err error) {
	if !s3Running.CompareAndSwap(false, true) {
		return nil, ErrS3Running
	}
	g := &s3Server{done: make(chan struct{})}
	var be *s3Backend
	defer func() {
		if err != nil && g.cancel == nil {
			if be != nil {
				be.Shutdown()
			}
			if g.log != nil {
				err = errors.Join(err, g.log.Close())
			}
			s3Running.Store(false)
		}
	}()
	if g.log, err = openLog(st.path("logs", "s3.log")); err != nil {
		return nil, err
	}
	if be, err = newS3Backend(st.path("s3"), st.path("s3-meta")); err != nil {
		return nil, err
	}
	if err := createBucket(ctx, be, st.cred.S3AccessKey); err != nil {
		return nil, err
	}
	if port == 0 {
		ports, err := freePorts(ctx, 1)
		if err != nil {
			return nil, err
		}
		port = ports[0]
	} else if err := checkPort(ctx, "S3", port); err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	g.url = "http://" + address

	logger := newLogger(g.log)
	listening := make(chan struct{})
	gateway, cancel := context.WithCancel(context.WithoutCancel(ctx))
	g.cancel = cancel
	go func() {
		defer close(g.done)
		defer s3Running.Store(false)
		g.err = embedgw.RunVersityGW(gateway, be, &embedgw.Config{
			RootUserAccess: st.cred.S3AccessKey,
			RootUserSecret: st.cred.S3SecretKey,
			IAMService: auth.NewIAMServiceSingle(auth.Account{
				Access: st.cred.S3AccessKey, Secret: st.cred.S3SecretKey, Role: auth.RoleAdmin,
			}),
			Region:            Region,
			Ports:             []string{address},
			MaxConnections:    s3MaxConnections,
			MaxRequests:       s3MaxConnections,
			MultipartMaxParts: s3MaxParts,
			Quiet:             true,
			KeepAlive:         true,
			DisableACLs:       true,
			S3Options: []s3api.Option{
				s3api.WithOnListen(sync.OnceFunc(func() { close(listening) })),
				s3api.WithMiddleware("/", func(c fiber.Ctx) error {
					begin := time.Now()
					err := c.Next()
					// Paths of objects only: query strings and headers carry signatures.
					logger.Info("request", "method", c.Method(), "path", c.Path(),
						"status", c.Response().StatusCode(), "elapsed", time.Since(begin), "error", err)
					return err
				}),
			},
		})
		if gateway.Err() == nil {
			if g.err == nil {
				g.err = errors.New("it stopped on its own")
			}
			fail(fmt.Errorf("devstack: s3: %w", g.err))
		}
	}()
	select {
	case <-listening:
		return g, nil
	case <-g.done:
		err = fmt.Errorf("devstack: s3 did not start: %w", g.err)
		if isAddrInUse(g.err) {
			err = &PortError{Service: "S3", Port: port, Err: g.err}
		}
		return nil, errors.Join(err, g.stop(ctx))
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("devstack: s3 did not start: %w", context.Cause(ctx)), g.stop(context.WithoutCancel(ctx)))
	}
}

// isAddrInUse reads the text because the gateway does not wrap the listener's error.
func isAddrInUse(err error) bool {
	return err != nil && strings.Contains(err.Error(), "address already in use")
}

// createBucket makes the stack's bucket. A crash between the making of its directory and the writing of its
// owner leaves a directory that the gateway would refuse for good, so an empty one is made anew.
func createBucket(ctx context.Context, be *s3Backend, owner string) error {
	bucket := Bucket
	acl, err := be.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: &bucket})
	if err == nil && len(acl) > 0 {
		return nil
	}
	dir := filepath.Join(be.root, bucket)
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return &StateError{Op: "write", Path: dir, Err: err}
	}
	blob, err := auth.UpdateACL(&auth.PutBucketAclInput{ACL: types.BucketCannedACLPrivate}, auth.ACL{Owner: owner}, nil)
	if err != nil {
		return fmt.Errorf("devstack: s3: cannot describe the owner of bucket %s: %w", bucket, err)
	}
	err = be.CreateBucket(ctx, &s3.CreateBucketInput{
		Bucket: &bucket, CreateBucketConfiguration: &types.CreateBucketConfiguration{},
	}, blob)
	if err != nil {
		return fmt.Errorf("devstack: s3: cannot create bucket %s: %w", bucket, err)
	}
	return nil
}

// stop lets the gateway finish its requests. Where ctx ends first it goes on in the background; the gateway
// gives its requests ten seconds at most.
func (g *s3Server) stop(ctx context.Context) error {
	g.once.Do(g.cancel)
	select {
	case <-g.done:
		return g.log.Close()
	case <-ctx.Done():
		return fmt.Errorf("devstack: s3 is still stopping: %w", context.Cause(ctx))
	}
}
