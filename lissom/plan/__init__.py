"""How to divide devices among a model's work: every split foreseen, by rates that are published or measured here."""

from lissom.plan.choose import Plan, plan_devices
from lissom.plan.device import DEVICES, Device, Link
from lissom.plan.forecast import Forecast
from lissom.plan.shapes import Shapes
from lissom.plan.split import Split

__all__ = ["DEVICES", "Device", "Forecast", "Link", "Plan", "Shapes", "Split", "plan_devices"]
