// Package smalldisk mounts file systems that tests can fill. Only root can, and not
// everywhere: elsewhere such a test is skipped and says so, unless
// $STOKEHOLD_REQUIRE_MOUNT is set, which makes that a failure.
package smalldisk

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// RequireEnv makes a machine on which nothing can be mounted a failure.
const RequireEnv = "STOKEHOLD_REQUIRE_MOUNT"

// Mount mounts an empty file system of that size over a directory, until unmount is
// called or the test ends. Unmounting again does nothing.
func Mount(t testing.TB, dir string, bytes int) (unmount func()) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		if os.Getenv(RequireEnv) != "" {
			t.Fatalf("mount a small disk: %v (%s is set)", err, RequireEnv)
		}
		t.Skipf("SKIPPED: mounting a small disk needs root: %v", err)
	}
	unmount = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	t.Cleanup(unmount)
	return unmount
}
