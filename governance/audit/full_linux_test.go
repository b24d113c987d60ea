package audit_test

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// occupy writes a file until less than a MiB is left.
func occupy(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if st.Bavail*uint64(st.Bsize) < 1<<20 {
			break
		}
		if _, err := f.Write(make([]byte, 256<<10)); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
