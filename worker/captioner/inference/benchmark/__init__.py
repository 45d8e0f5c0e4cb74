"""Speed, measured: our BLIP beside transformers', in one run, on the same pictures and tokens.

    checkpoint = open_checkpoint("demo")
    report = compare(checkpoint, device, dtype, pictures, Plan(batches=(1, 8), beams=(1, 3)))

What a number means is said where it is made: `sides` what is timed, `agreement` what makes a
comparison fair, `floor` what the encoder could reach at best, `memory` what stays after a batch.
"""

from captioner.inference.benchmark.compare import Plan, compare
from captioner.inference.benchmark.machine import describe_hardware, describe_versions
from captioner.inference.benchmark.memory import measure_memory
from captioner.inference.benchmark.random_weights import make_blip_large

__all__ = [
    "Plan",
    "compare",
    "describe_hardware",
    "describe_versions",
    "make_blip_large",
    "measure_memory",
]
