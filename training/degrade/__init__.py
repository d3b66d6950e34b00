"""LR made from HR: the two-stage degradations of Real-ESRGAN and SRGD, and an imitated render.

`presets.draw` draws a recipe, `steps.apply` carries it out, `folder.degrade` does it to a data
set, `render.measure` finds the parameters of the imitated render from pairs.
"""

from __future__ import annotations

import argparse


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `degrade` and `measure-render`."""
    from training.degrade import command

    command.add_degrade(commands)
    command.add_measure(commands)
