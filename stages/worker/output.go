package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/stokehold/stokehold/arrowio"
	"github.com/stokehold/stokehold/arrowio/shm"
	"github.com/stokehold/stokehold/arrowio/shm/handoff"
)

// ErrModel means: the child handed over a model that this host takes none of, or
// none so large. The stage would do it again.
var ErrModel = errors.New("the model cannot be taken")

// adopt verifies and maps a sealed memfd that came with a message, closing the
// descriptor on error.
func adopt(fd int, size, length int64) (*shm.Arena, shm.Handle, error) {
	arena, handle, err := shm.Adopt(fd, size, length)
	if err == nil {
		return arena, handle, nil
	}
	_ = unix.Close(fd) // received, never written to
	if errors.Is(err, shm.ErrSeals) {
		err = fmt.Errorf("%w: %w", ErrProtocol, err)
	} // else this process could not map it: not the child's fault
	return nil, shm.Handle{}, err
}

// output adopts a sealed segment that the child published.
func (r *run) output(ctx context.Context, pkt handoff.Packet, cancelled bool) error {
	fd := pkt.FDs[0]
	note, err := decodeOutputNote(pkt.Payload)
	if err == nil && note.size > r.host.cfg.BatchBytes {
		err = handoff.Violation("output %d of %d bytes: at most %d", note.sequence, note.size, r.host.cfg.BatchBytes)
	}
	if err != nil {
		_ = unix.Close(fd) // received, never written to
		return err
	}
	arena, handle, err := adopt(fd, note.size, note.length)
	if err != nil {
		return fmt.Errorf("output %d: %w", note.sequence, err)
	}
	return r.take(ctx, &Output{Sequence: note.sequence, Arena: arena, Handle: handle}, cancelled)
}

// publish takes an output that lies in the child's own arena.
func (r *run) publish(ctx context.Context, pkt handoff.Packet, cancelled bool) error {
	note, err := decodePublishNote(pkt.Payload)
	if err != nil {
		return err
	}
	arena, handle, err := r.p.peers.publish(note)
	if err != nil {
		return err
	}
	r.host.count.outShared.Add(1)
	return r.take(ctx, &Output{Sequence: note.sequence, Arena: arena, Handle: handle}, cancelled)
}

// take validates an output and hands it on.
func (r *run) take(ctx context.Context, out *Output, cancelled bool) error {
	defer func() {
		if !out.kept {
			// It was published by the caller and nobody else could drop it.
			_ = out.Arena.Drop(out.Handle)
		}
	}()
	lease, err := out.Arena.Hold(out.Handle, "worker-output")
	if err != nil {
		return err
	}
	frame, body := lease.Bytes(), int64(0)
	if out.Batch, err = lease.BatchBy(&r.p.decoder, arrowio.CountBody(&body)); err != nil {
		return fmt.Errorf("%w: output %d: %w", ErrProtocol, out.Sequence, err)
	}
	defer out.Batch.Release()
	r.host.count.outBatches.Add(1)
	r.host.count.outBytes.Add(uint64(body))
	r.copied += uint64(arrowio.BytesOutside(out.Batch, frame))
	r.dropped = r.dropped || cancelled
	if r.job.OnBatch != nil && !cancelled {
		if err := r.job.OnBatch(ctx, out); err != nil {
			return fmt.Errorf("take output %d: %w", out.Sequence, err)
		}
	}
	return r.p.send(kindAck, r.id, encodeU64(out.Sequence))
}

// model takes a model. The child waits for the answer; a cancelled one gets none.
func (r *run) model(ctx context.Context, pkt handoff.Packet, cancelled bool) error {
	fd := pkt.FDs[0]
	note, err := decodeModelNote(pkt.Payload)
	switch {
	case err != nil:
	case note.length > r.host.cfg.ModelBytes || note.size > r.host.cfg.ModelBytes+hugePage:
		err = fmt.Errorf("%w: %d bytes in %d, at most %d (Config.ModelBytes)", ErrModel, note.length, note.size, r.host.cfg.ModelBytes)
	case r.job.OnModel == nil:
		err = fmt.Errorf("%w: there is no registry here", ErrModel)
	}
	if err != nil || cancelled {
		r.dropped = true
		_ = unix.Close(fd) // received, never written to
		return err
	}
	arena, handle, err := adopt(fd, note.size, note.length)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	defer func() { _ = arena.Drop(handle) }() // ours alone
	lease, err := arena.Lease(handle, "worker-model")
	if err != nil {
		return err
	}
	defer lease.Release()
	m := Model{ModelDraft: note.draft, Artifact: lease.Bytes()}
	if m.Format == "" {
		m.Format = "safetensors"
	}
	if m.Kind == "" {
		m.Kind = "external"
	}
	saved, err := r.job.OnModel(ctx, &m)
	if err != nil {
		return fmt.Errorf("save the model: %w", err)
	}
	r.host.count.models.Add(1)
	b, err := json.Marshal(saved)
	if err != nil {
		return fmt.Errorf("save the model: %w", err)
	}
	return r.p.send(kindSaved, r.id, b)
}

// hugePage is how much larger than the artifact its memfd may be: a whole page of
// the largest kind that memfds come in by default.
const hugePage = 2 << 20
