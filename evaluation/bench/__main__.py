"""`python -m evaluation.bench`: the same as `overlay bench`, without needing all of the overlay.

With `--suite gpu` PyTorch and numpy are enough.
"""

from __future__ import annotations

import argparse
import sys

from engines.errors import EngineError
from evaluation import bench
from overlay.errors import OverlayError


def main() -> int:
    """Run the benchmark; give its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.bench", description="Measure the speed of upscalers."
    )
    bench.add_arguments(parser)
    try:
        return bench.run(parser.parse_args())
    except (OverlayError, EngineError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
