// Package minioserver builds a real MinIO server from the Go module proxy and runs
// it as a child process, for tests and benchmarks. The server is executed, never
// imported: the library does not carry its weight.
package minioserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// Version is the last release of the server that the module proxy has. Upstream
	// has archived the repository.
	Version = "v0.0.0-20260212201848-7aac2a2c5b7c"

	modulePath = "github.com/minio/minio"
)

// ErrNotBuilt means the cache holds no server of this Version.
var ErrNotBuilt = errors.New("MinIO is not built: `task minio:build` builds it from the Go module proxy, once, in about 5 minutes on two cores")

// Path returns the cached binary; the error wraps ErrNotBuilt if there is none.
func Path() (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "minio")
	if _, err := os.Stat(bin); errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w (no %s)", ErrNotBuilt, bin)
	} else if err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	return bin, nil
}

func cacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	return filepath.Join(base, "stokehold", "minio-"+Version), nil
}

// Build returns the cached binary, and builds it before if it is missing. Of
// several processes that call it at once one builds, and the others wait.
func Build(ctx context.Context) (string, error) {
	dir, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	defer func() { _ = lock.Close() }() // gives the lock up
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("minioserver: lock %s: %w", lock.Name(), err)
	}
	if bin, err := Path(); !errors.Is(err, ErrNotBuilt) {
		return bin, err
	}
	return build(ctx, dir)
}

// build makes the binary in a module of its own, so that the server's requirements
// meet nobody else's, and gives it its name when it is whole.
func build(ctx context.Context, dir string) (bin string, err error) {
	scratch, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if err := os.WriteFile(filepath.Join(scratch, "go.mod"), []byte("module scratch\n\ngo 1.26\n"), 0o600); err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	whole := filepath.Join(scratch, "minio")
	for _, args := range [][]string{
		{"get", modulePath + "@" + Version},
		{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", whole, modulePath},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = scratch
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=mod", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("minioserver: go %s: %w\n%s", args[0], err, out)
		}
	}
	bin = filepath.Join(dir, "minio")
	if err := os.Rename(whole, bin); err != nil {
		return "", fmt.Errorf("minioserver: %w", err)
	}
	return bin, nil
}
