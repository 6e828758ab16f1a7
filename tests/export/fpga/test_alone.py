"""A layer by itself takes what it takes in its network."""

import numpy as np
import torch
from torch import nn

from lissom import compress_model
from lissom.export.fpga import alone
from lissom.export.fpga.chain import chain, in_fixed_point
from lissom.export.fpga.circuit import Resources, table
from lissom.hardware.ways import FPGA
from lissom.models.layers import weight_of

COUNTED = ("weights", "multipliers", "adders", "dsp", "cycles", "lut")


def test_layers_take_what_they_take_in_the_network() -> None:
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 3)]
    model = compress_model(
        nn.Sequential(*layers), torch.randn(8, 2, 8, 8), steps=[{"technique": "rtn", "bits": 4}]
    ).eval()
    told = table(in_fixed_point(chain(model), torch.randn(8, 2, 8, 8).abs(), alone.BITS), {}, {})
    rows = {row["layer"]: row for row in told["layers"]}
    for name, places in (("0", 36), ("3", 1)):  # the last has more bits for what it says
        layer = model.get_submodule(name)
        found = alone.taken(weight_of(layer), layer, places)
        assert {one: getattr(found, one) for one in COUNTED} == {one: rows[name][one] for one in COUNTED}
    whole = [alone.taken(None, model.get_submodule(name), places) for name, places in (("0", 36), ("3", 1), ("5", 1))]
    for one in ("weights", "dsp", "lut", "cycles"):
        assert sum(getattr(part, one) for part in whole) == told["uncompressed"][one]


def test_a_share_of_a_chip_is_of_its_tables_and_its_multipliers() -> None:
    part = alone.Part(lut=1000, dsp=10)
    assert np.isclose(part.share(Resources(lut=500, dsp=1)), 0.6)


def test_the_parts_are_those_that_can_be_named() -> None:
    assert tuple(alone.PARTS) == FPGA.devices
