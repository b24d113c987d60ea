"""Ray: ray.put by the driver, ray.get by an actor of another process."""

import logging
import os
import tempfile

import ray

from common import Control, check, make_batch, samples, touch

STORE = 1 << 30  # bytes of object store: two of the largest batches and room


@ray.remote(num_cpus=1)
class Consumer:
    def take(self, batch):
        return touch(batch)


def main():
    with tempfile.TemporaryDirectory(prefix="ray", dir=os.environ["TMPDIR"], ignore_cleanup_errors=True) as directory:
        here = os.path.dirname(os.path.abspath(__file__))
        ray.init(
            num_cpus=2,
            object_store_memory=STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=directory,
            runtime_env={"env_vars": {"PYTHONPATH": here}},
        )
        try:
            consumer = Consumer.remote()

            def measure(order):
                batch = make_batch(order["size"])
                want = touch(batch)

                def hand_over(_):
                    ref = ray.put(batch)
                    return ray.get(consumer.take.remote(ref))

                return samples(order, hand_over, settle=lambda got: check(got, want))

            ray.get(consumer.take.remote(ray.put(make_batch(1024))))
            Control(ray=ray.__version__).serve(measure)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
