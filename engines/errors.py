"""The errors of models and engines.

    EngineError         exit 5
      UnknownModel      exit 2     no model has this name
      EngineMissing                a model's or an engine's file is not there
      EngineMismatch               an engine was made for something else (model, size, device)
      BuildFailed                  an engine could not be made
      ModelInvalid                 a model file is damaged or is not what its name says

A message says what, which file or value, and what to do next.
"""


class EngineError(Exception):
    """Base of everything that is wrong with a model or an engine."""

    exit_code = 5


class UnknownModel(EngineError):
    """No model has this name: a slip on the command line or in a configuration file."""

    exit_code = 2


class EngineMissing(EngineError):
    """A file of a model or an engine is not there."""


class EngineMismatch(EngineError):
    """An engine was made for something else than what it is asked to do."""


class BuildFailed(EngineError):
    """An engine could not be made from a model."""


class ModelInvalid(EngineError):
    """A model file is damaged, or is not the file that its table row names."""
