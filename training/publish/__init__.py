"""Data sets and models made ready for Hugging Face and Kaggle; uploaded only when asked.

`dataset` packs frames into SRGD's layout behind a licence gate, `model` makes a model's folder,
`cards` writes what people read about them, `hub` uploads.
"""

from __future__ import annotations

import argparse


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `publish`."""
    from training.publish import command

    command.add_publish(commands)
