package arrowio_test

import (
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/stokehold/stokehold/internal/arrowtest"
	"github.com/stokehold/stokehold/internal/arrowtest/drawn"
)

// What these tests use of the generator that others use, too.
var (
	leaves     = arrowtest.Leaves
	nests      = arrowtest.Nests
	canonical  = arrowtest.Canonical
	unknown    = arrowtest.Unknown
	drawBatch  = drawn.Batch
	plainBatch = arrowtest.PlainBatch
	integers   = arrowtest.Integers
	width      = arrowtest.Width
)

func little[T any](values ...T) *memory.Buffer { return arrowtest.Little(values...) }
