"""Data and training of the default nets: collect -> pairs -> train -> evaluate_default."""
