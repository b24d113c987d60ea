package stagetest

import "unsafe"

// alignTo returns b from its first address that is a multiple of align, a power
// of two.
func alignTo(b []byte, align uintptr) []byte {
	addr := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	return b[(align-addr%align)%align:]
}
