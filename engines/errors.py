"""The errors of models and engines.

    EngineError         exit 5
      UsageError        exit 2     what was asked for makes no sense: a size, a back end
        UnknownModel               no model has this name
      WeightsMissing               a model's weights are not on this machine; says how to get them
      BuilderMissing               a back end's package, driver or device is missing
      EngineMissing                a model's or an engine's file is not there
      EngineMismatch               an engine was made for something else (model, size, device)
      BuildFailed                  an engine could not be made
      ModelInvalid                 a model file is damaged or is not what its name says
      CacheError                   the cache folder cannot be read, written or locked
        CacheBusy                  another process is building the engine

A message says what, which file or value, and what to do next.
"""


class EngineError(Exception):
    """Base of everything that is wrong with a model or an engine."""

    exit_code = 5


class UsageError(EngineError):
    """A slip on the command line or in a configuration file."""

    exit_code = 2


class UnknownModel(UsageError):
    """No model has this name."""


class WeightsMissing(EngineError):
    """A model's weights are not on this machine; the message says how to get them."""


class BuilderMissing(EngineError):
    """A back end cannot build, or cannot run an engine, on this machine; says what is missing."""


class EngineMissing(EngineError):
    """A file of a model or an engine is not there."""


class EngineMismatch(EngineError):
    """An engine was made for something else than what it is asked to do."""


class BuildFailed(EngineError):
    """An engine could not be made from a model."""


class ModelInvalid(EngineError):
    """A model file is damaged, or is not the file that its table row names."""


class CacheError(EngineError):
    """The cache of engines cannot be read, written or locked."""


class CacheBusy(CacheError):
    """Another process holds the lock of an engine."""
