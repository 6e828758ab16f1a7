"""A small network in fixed point, as a project of high-level synthesis for FPGAs."""
