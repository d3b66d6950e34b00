"""Collectors: each makes one packaged game render the same frames at several sizes."""
