"""What goes on beside a measurement: power, temperature, load, clocks, throttling, and the conditions it was taken in.

    with sampler() as telemetry:
        ...                                    # idle, then the timed blocks
    rail, why = pick_rail(telemetry.samples())

A Jetson is read through `tegrastats` and sysfs, another machine's NVIDIA GPU through NVML, and anything else through
psutil. Nothing here raises because a machine cannot be read: the value is None, and the reason says why.
"""

from frs.edge.telemetry.choose import sampler
from frs.edge.telemetry.collect import Sampler
from frs.edge.telemetry.power import energy, idle_power, pick_rail
from frs.edge.telemetry.sample import Sample
from frs.edge.telemetry.state import Conditions, conditions

__all__ = ["Conditions", "Sample", "Sampler", "conditions", "energy", "idle_power", "pick_rail", "sampler"]
