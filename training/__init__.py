"""Data and training of the nets: collect -> degrade -> train; `evaluation` judges them."""
