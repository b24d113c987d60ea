package shm

import "slices"

// extents is the free memory of an arena: sorted by offset, never touching one
// another. First fit keeps the low end dense, where pages are warm; arenas hold
// tens of slots, so the scan is short.
type extents []extent

type extent struct{ offset, bytes int64 }

func (e *extents) take(bytes int64) (offset int64, ok bool) {
	for i := range *e {
		x := &(*e)[i]
		if x.bytes < bytes {
			continue
		}
		offset = x.offset
		x.offset += bytes
		x.bytes -= bytes
		if x.bytes == 0 {
			*e = slices.Delete(*e, i, i+1)
		}
		return offset, true
	}
	return 0, false
}

func (e *extents) give(offset, bytes int64) {
	i, _ := slices.BinarySearchFunc(*e, offset, func(x extent, at int64) int { return int(min(max(x.offset-at, -1), 1)) })
	joinsLeft := i > 0 && (*e)[i-1].offset+(*e)[i-1].bytes == offset
	joinsRight := i < len(*e) && offset+bytes == (*e)[i].offset
	switch {
	case joinsLeft && joinsRight:
		(*e)[i-1].bytes += bytes + (*e)[i].bytes
		*e = slices.Delete(*e, i, i+1)
	case joinsLeft:
		(*e)[i-1].bytes += bytes
	case joinsRight:
		(*e)[i].offset = offset
		(*e)[i].bytes += bytes
	default:
		*e = slices.Insert(*e, i, extent{offset, bytes})
	}
}
