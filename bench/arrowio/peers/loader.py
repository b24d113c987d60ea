"""PyTorch's DataLoader with one worker process: 16 samples of 7 tensors a batch.

"7" collates them to 7 tensors, as is the default; "112" passes each by itself. The
time of a batch is from one to the next, with the loader's own prefetching.
"""

import sys
import time

import torch

from common import Control

SAMPLES, TENSORS = 16, 7


class Samples(torch.utils.data.Dataset):
    def __init__(self, size, fresh):
        self.fresh = fresh
        self.tensors = [torch.arange(size // (4 * SAMPLES * TENSORS), dtype=torch.float32) for _ in range(TENSORS)]

    def __len__(self):
        return 1 << 40

    def __getitem__(self, i):
        # Tensors that were sent once stay in shared memory, so what is sent again must be new.
        return [t.clone() for t in self.tensors] if self.fresh else self.tensors


class Forever(torch.utils.data.Sampler):
    def __iter__(self):
        while True:
            yield 0


def main(count):
    def measure(order):
        one_by_one = count == SAMPLES * TENSORS
        data = Samples(order["size"], fresh=one_by_one)
        loader = torch.utils.data.DataLoader(
            data, batch_size=SAMPLES, sampler=Forever(), num_workers=1, collate_fn=as_is if one_by_one else None
        )
        out, until = [], 0.0
        batches = iter(loader)
        begun = time.perf_counter_ns()
        for i, batch in enumerate(batches):
            seen = 0
            for sample in batch if one_by_one else (batch,):
                for tensor in sample:
                    tensor.reshape(-1)[::1024].sum()
                    seen += 1
            assert seen == count
            del batch, sample, tensor
            ended = time.perf_counter_ns()
            if i >= order["warm"]:
                out.append((ended - begun) / 1e3)
                if len(out) >= order["count"] or len(out) >= 3 and time.monotonic() > until:
                    break
            else:
                until = time.monotonic() + order["seconds"]
            begun = ended
        del batches
        return out

    Control(torch=torch.__version__).serve(measure)


def as_is(samples):
    return samples


if __name__ == "__main__":
    main(int(sys.argv[1]))
