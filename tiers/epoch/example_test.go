package epoch_test

import (
	"fmt"

	"github.com/stokehold/stokehold/tiers/epoch"
)

// The same seed gives the same order everywhere; another epoch gives another one.
func ExampleOrder_At() {
	order := epoch.Order{Kind: epoch.Shuffled, Seed: 7}
	for e := range uint64(3) {
		var visits []uint64
		for i := range uint64(6) {
			visits = append(visits, order.At(e, 6, i))
		}
		fmt.Println(visits)
	}
	// Output:
	// [4 3 1 0 2 5]
	// [1 0 5 2 3 4]
	// [4 0 1 5 3 2]
}
