"""The errors of the service, each with the HTTP status that it becomes.

    ServiceError
      Refused           400     a picture, model or option that cannot be had
      Forbidden         403     a web page of somewhere else
      Unacceptable      406     the formats that the client takes are not written
      TooLarge          413     the body
      TooSlow           408     the body comes too slowly
      Busy              429     all slots and places in the queue are taken; try again later
      Unavailable       503     the model's back end or its memory is not there now
      TimedOut          504     the work took too long

A message says what, which value, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class ServiceError(Exception):
    """Base of what the service answers on purpose; its text is shown to the client."""

    status: ClassVar[int] = 400

    @property
    def headers(self) -> Mapping[str, str]:
        """What the answer's head says besides."""
        return {}


class Refused(ServiceError):
    """The request makes no sense, or asks for what there is not."""


class Forbidden(ServiceError):
    """A page of another origin may not do this."""

    status = 403


class Unacceptable(ServiceError):
    """No format that the client accepts is written."""

    status = 406


class TooLarge(ServiceError):
    """The body is larger than is taken."""

    status = 413

    @property
    def headers(self) -> Mapping[str, str]:
        """The rest of the body is not read."""
        return {"Connection": "close"}


class TooSlow(ServiceError):
    """The body did not come in time."""

    status = 408

    @property
    def headers(self) -> Mapping[str, str]:
        """The rest of the body is not waited for."""
        return {"Connection": "close"}


class Busy(ServiceError):
    """There is no room for another request.

    Args:
        text: why.
        retry_s: seconds after which trying again may help.
    """

    status = 429

    def __init__(self, text: str, retry_s: int = 1) -> None:
        super().__init__(text)
        self.retry_s = retry_s

    @property
    def headers(self) -> Mapping[str, str]:
        """When to try again."""
        return {"Retry-After": str(self.retry_s)}


class Unavailable(ServiceError):
    """It cannot be done now, though the request is fine."""

    status = 503

    @property
    def headers(self) -> Mapping[str, str]:
        """When to try again."""
        return {"Retry-After": "5"}


class TimedOut(ServiceError):
    """It took longer than a request may."""

    status = 504
