"""The errors of metrics and of evaluation.

DataError                  exit 1     training.errors
  EvaluationError          exit 2     an evaluation as asked for makes no sense
    MetricUnavailable      exit 2     a metric's weights are not on this machine, or are wrong
"""

from __future__ import annotations

from training.errors import DataError


class EvaluationError(DataError):
    """What was asked for cannot be evaluated; the message says why and what to do."""

    exit_code = 2


class MetricUnavailable(EvaluationError):
    """A metric's weights are not on this machine, or are not what they should be."""
