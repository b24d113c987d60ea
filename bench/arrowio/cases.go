package main

import (
	"context"

	"github.com/stokehold/stokehold/stages/worker"
)

// The names of the cases. Ours begin with what of Stokehold they go through.
const (
	workerGo             = "worker host to Go child, in place"
	workerGoFresh        = "worker host to Go child, in place, just built"
	workerGoCopied       = "worker host to Go child, copied in"
	workerGoBuilt        = "worker host to Go child, built in place"
	workerGoLook         = "worker host to Go child, in place, not touched"
	workerPy             = "worker host to Python child, in place"
	workerPyFresh        = "worker host to Python child, in place, just built"
	workerPyCopied       = "worker host to Python child, copied in"
	workerPyBuilt        = "worker host to Python child, built in place"
	workerPyLook         = "worker host to Python child, in place, not touched"
	peersGo              = "peers, Go to Go, in place"
	peersGoCopied        = "peers, Go to Go, copied in"
	peersGoLook          = "peers, Go to Go, in place, not touched"
	goSealed             = "Go child to worker host, sealed"
	goShared             = "Go child to worker host, shared"
	pySealed             = "Python child to worker host, sealed"
	pyShared             = "Python child to worker host, shared"
	pyLoan               = "Python child to worker host, shared, in place"
	buildArena           = "build and publish in place"
	buildHeap            = "build on the Go heap"
	tensors112           = "16x7 tensors, worker host to Python child"
	tensors7             = "16x7 tensors as 7, worker host to Python child"
	bareCase             = "bare message, Go to Go, in place"
	barePy               = "bare message, Go to Python, in place"
	streamGo             = "Unix socket, Go to Go"
	streamPy             = "Unix socket, Go to Python"
	streamInGo           = "Unix socket, Go child to host"
	streamInPy           = "Unix socket, Python child to host"
	flightGo             = "Flight stream, Go to Go"
	flightGoCalls        = "Flight call for each batch, Go to Go"
	flightPy             = "Flight stream, Go to Python"
	flightPyCalls        = "Flight call for each batch, Go to Python"
	fileGoPy             = "/dev/shm file, Go to Python"
	sharedMemory         = "shared_memory and pickle, Python to Python"
	rayCase              = "Ray put and get, Python to Python"
	doraCase             = "dora-rs, Python to Python"
	iceoryx              = "iceoryx2, Arrow, in place, Python to Python"
	iceoryxRaw           = "iceoryx2, bytes, in place, Python to Python"
	iceoryxFill          = "iceoryx2, Arrow, copied in, Python to Python"
	loader112            = "16x7 tensors, DataLoader"
	loader7              = "16x7 tensors as 7, DataLoader"
	handoffSize    int64 = 4 << 10 // what the hand-over of large batches is compared with
)

// cases are all there are. Ours stand between those that they are compared with.
func cases() []benchCase {
	role := func(name string) func(*env, context.Context) (*process, error) {
		return func(e *env, ctx context.Context) (*process, error) { return e.child(ctx, name) }
	}
	script := func(name string) func(*env, context.Context) (*process, error) {
		return func(e *env, ctx context.Context) (*process, error) { return e.script(ctx, name) }
	}
	ordered := func(name string, args ...string) func(context.Context, *env) (handover, error) {
		return func(ctx context.Context, e *env) (handover, error) { return e.orders(ctx, name, args...) }
	}
	also, two := []int64{handoffSize}, []int64{1 << 20, 16 << 20}
	return []benchCase{
		{name: streamGo, baseline: streamGo, start: startStream(role("stream"))},
		{name: bareCase, baseline: streamGo, start: startBare(role("bare"))},
		{name: workerGo, baseline: streamGo, start: startWorker(false, "touch", inPlace)},
		{name: workerGoFresh, baseline: streamGo, start: startWorker(false, "touch", fresh)},
		{name: workerGoCopied, baseline: streamGo, start: startWorker(false, "touch", copied)},
		{name: workerGoBuilt, baseline: streamGo, start: startWorker(false, "touch", builtIn)},
		{name: workerGoLook, baseline: streamGo, also: also, start: startWorker(false, "look", inPlace)},
		{name: peersGo, baseline: streamGo, start: startPeers("peer", inPlace)},
		{name: peersGoCopied, baseline: streamGo, start: startPeers("peer", copied)},
		{name: peersGoLook, baseline: streamGo, also: also, start: startPeers("peer-look", inPlace)},
		{name: flightGo, baseline: streamGo, start: startFlight(role("flight"), false)},
		{name: flightGoCalls, baseline: streamGo, start: startFlight(role("flight"), true)},

		{name: streamInGo, baseline: streamInGo, start: startStreamIn(role("emit"))},
		{name: goSealed, baseline: streamInGo, start: startEmit(false, worker.Sealed, false)},
		{name: goShared, baseline: streamInGo, start: startEmit(false, worker.Shared, false)},

		{name: buildHeap, baseline: buildHeap, alone: two, start: startBuilding(false)},
		{name: buildArena, baseline: buildHeap, alone: two, start: startBuilding(true)},

		{name: streamPy, python: true, baseline: streamPy, start: startStream(script("stream.py"))},
		{name: barePy, python: true, baseline: streamPy, start: startBare(script("bare.py"))},
		{name: iceoryx, python: true, baseline: streamPy, start: ordered("iceoryx.py")},
		{name: workerPy, python: true, baseline: streamPy, start: startWorker(true, "touch", inPlace)},
		{name: workerPyFresh, python: true, baseline: streamPy, start: startWorker(true, "touch", fresh)},
		{name: iceoryxRaw, python: true, baseline: streamPy, start: ordered("iceoryx.py", "raw")},
		{name: workerPyCopied, python: true, baseline: streamPy, start: startWorker(true, "touch", copied)},
		{name: iceoryxFill, python: true, baseline: streamPy, start: ordered("iceoryx.py", "fill")},
		{name: workerPyBuilt, python: true, baseline: streamPy, start: startWorker(true, "touch", builtIn)},
		{name: workerPyLook, python: true, baseline: streamPy, also: also, start: startWorker(true, "look", inPlace)},
		{name: flightPy, python: true, baseline: streamPy, start: startFlight(script("flightpeer.py"), false)},
		{name: flightPyCalls, python: true, baseline: streamPy, start: startFlight(script("flightpeer.py"), true)},
		{name: fileGoPy, python: true, baseline: streamPy, start: startShmFile},
		{name: sharedMemory, python: true, baseline: streamPy, start: ordered("sharedmemory.py")},
		{name: rayCase, python: true, baseline: streamPy, start: ordered("raypeer.py")},
		{name: doraCase, python: true, baseline: streamPy, start: ordered("dorapeer.py")},

		{name: streamInPy, python: true, baseline: streamInPy, start: startStreamIn(script("emitstream.py"))},
		{name: pySealed, python: true, baseline: streamInPy, start: startEmit(true, worker.Sealed, false)},
		{name: pyShared, python: true, baseline: streamInPy, start: startEmit(true, worker.Shared, false)},
		{name: pyLoan, python: true, baseline: streamInPy, start: startEmit(true, worker.Shared, true)},

		{name: loader112, python: true, baseline: loader112, alone: two, start: ordered("loader.py", "112")},
		{name: tensors112, python: true, baseline: loader112, alone: two, start: startTensors("tensors 112")},
		{name: loader7, python: true, baseline: loader7, alone: two, start: ordered("loader.py", "7")},
		{name: tensors7, python: true, baseline: loader7, alone: two, start: startTensors("tensors 7")},
	}
}

// comparison is a line of the second table: ours against theirs, and what it is
// meant to reach.
type comparison struct {
	ours, theirs string
	sizes        []int64 // nil: all
	theirSize    int64   // 0: the same
	target       float64 // of theirs' p50 by ours'; 0: none is set
}

func comparisons() []comparison {
	mib := []int64{1 << 20}
	return []comparison{
		{ours: workerGoCopied, theirs: streamGo, sizes: mib, target: 2.5},
		{ours: workerPyCopied, theirs: streamPy, sizes: mib, target: 2.5},
		{ours: peersGoCopied, theirs: streamGo, sizes: mib, target: 2.5},
		{ours: workerGoCopied, theirs: flightGoCalls, sizes: mib, target: 25},
		{ours: workerGoCopied, theirs: flightGo, sizes: mib, target: 25},
		{ours: workerPyCopied, theirs: flightPyCalls, sizes: mib, target: 25},
		{ours: workerPyCopied, theirs: flightPy, sizes: mib, target: 25},
		{ours: workerGo, theirs: streamGo, sizes: []int64{16 << 20}, target: 200},
		{ours: bareCase, theirs: streamGo, sizes: []int64{16 << 20}},
		{ours: workerPy, theirs: streamPy, sizes: []int64{16 << 20}, target: 200},
		{ours: peersGo, theirs: streamGo, sizes: []int64{16 << 20}, target: 200},
		{ours: workerGoLook, theirs: workerGoLook, sizes: []int64{256 << 20}, theirSize: handoffSize, target: 0.5},
		{ours: workerPyLook, theirs: workerPyLook, sizes: []int64{256 << 20}, theirSize: handoffSize, target: 0.5},
		{ours: peersGoLook, theirs: peersGoLook, sizes: []int64{256 << 20}, theirSize: handoffSize, target: 0.5},
		{ours: workerPy, theirs: rayCase, target: 10},
		{ours: workerPyCopied, theirs: rayCase, target: 10},
		{ours: workerPy, theirs: doraCase, target: 10},
		{ours: workerPyCopied, theirs: doraCase, target: 10},
		{ours: workerPyFresh, theirs: iceoryx, target: 1 / 1.2},
		{ours: workerPyFresh, theirs: iceoryxRaw},
		{ours: workerPyCopied, theirs: iceoryxFill},
		{ours: workerGoFresh, theirs: iceoryxRaw},
		{ours: workerPyCopied, theirs: fileGoPy},
		{ours: workerPyCopied, theirs: sharedMemory},
		{ours: buildArena, theirs: buildHeap, target: 0.9},
		{ours: tensors112, theirs: loader112, target: 1.5},
		{ours: tensors7, theirs: loader7, target: 1.5},
	}
}
