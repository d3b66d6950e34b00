"""Tables and pictures of evaluations: `python -m evaluation.report`."""
