// Command stokehold runs the demo and the embedded stack, and looks into any
// deployment: flags, wiring and rendering. docs/CLI.md describes it.
package main

import (
	"os"

	"github.com/stokehold/stokehold/examples/flights"
	"github.com/stokehold/stokehold/stages"
)

func main() {
	stages.RunIfChild(flights.ChildStages())
	os.Exit(run(os.Args[1:], process(), newPlatform()))
}
