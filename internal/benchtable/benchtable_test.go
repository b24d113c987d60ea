package benchtable_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stokehold/stokehold/internal/benchtable"
)

func ExampleWrite() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, ".bench", "bus.json")
	if err := benchtable.Write(path, []benchtable.Row{{Case: "publish", Unit: "msg/s", Value: 80_000, Baseline: 16_000, Ratio: 5}}); err != nil {
		fmt.Println(err)
		return
	}
	raw, _ := os.ReadFile(path)
	fmt.Print(string(raw))
	// Output:
	// [
	//   {
	//     "case": "publish",
	//     "unit": "msg/s",
	//     "value": 80000,
	//     "baseline": 16000,
	//     "ratio": 5
	//   }
	// ]
}

func TestAnImpossibleRatioIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	if err := benchtable.Write(path, []benchtable.Row{{Ratio: math.Inf(1)}}); err == nil {
		t.Error("written")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a file of half a result")
	}
}
