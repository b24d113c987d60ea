package tiers_test

import (
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkWarmWrite compares ways to write a frame of 16 MiB to the disk and sync it,
// and then to read it once as a mapping, as who waits for the batch does: through the
// page cache, as the warm tier does, and around it (O_DIRECT). Decision 47 is about it.
// It takes a disk: set TMPDIR where the temporary directory is in memory.
func BenchmarkWarmWrite(b *testing.B) {
	const size, pieces = 16 << 20, 1 << 20
	raw := make([]byte, size+4096)
	start := (4096 - int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))%4096)) % 4096
	frame := raw[start : start+size]
	for i := range frame {
		frame[i] = byte(i * 7)
	}
	for _, c := range []struct {
		name  string
		flags int
	}{{"page cache", 0}, {"O_DIRECT", unix.O_DIRECT}} {
		for _, read := range []bool{false, true} {
			name := c.name
			if read {
				name += ", and read"
			}
			b.Run(name, func(b *testing.B) {
				b.SetBytes(size)
				path := filepath.Join(b.TempDir(), "frame")
				for b.Loop() {
					fd, err := unix.Open(path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY|unix.O_CLOEXEC|c.flags, 0o600)
					if err != nil {
						b.Skip("the file system: ", err)
					}
					for at := 0; at < size; at += pieces {
						if n, err := unix.Write(fd, frame[at:at+pieces]); err != nil || n != pieces {
							b.Fatal(n, err)
						}
					}
					if err := unix.Fsync(fd); err != nil {
						b.Fatal(err)
					}
					if err := unix.Close(fd); err != nil {
						b.Fatal(err)
					}
					if read {
						touch(b, path, size)
					}
					if err := os.Remove(path); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// touch reads a byte of each page of a mapped file.
func touch(b *testing.B, path string, size int) {
	b.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		b.Fatal(err)
	}
	sum := byte(0)
	for at := 0; at < size; at += 4096 {
		sum += data[at]
	}
	if err := unix.Munmap(data); err != nil {
		b.Fatal(err, sum)
	}
}
