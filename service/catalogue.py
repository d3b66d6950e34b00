"""Which models clients may name: those of the back end that the settings allow."""

from __future__ import annotations

from engines import zoo
from engines.errors import UnknownModel
from overlay.files.enlarge import DEFAULT
from service.backends import Backend, Offer
from service.errors import Refused

#: What `DEFAULT` stands for where nothing is known about the picture.
_STANDARD = "default-x4"


class Catalogue:
    """Looks up names. Its methods may take a second: not for the event loop.

    Args:
        backend: whose models.
        allowed: ids; () = all.
    """

    def __init__(self, backend: Backend, allowed: tuple[str, ...]) -> None:
        self._backend = backend
        self._allowed = frozenset(
            row.id
            for name in allowed
            for row in (zoo.SHIPPED if name == DEFAULT else (zoo.spec(name),))
        )

    def offers(self) -> tuple[Offer, ...]:
        """List the models that may be named."""
        offers = self._backend.offers()
        return tuple(one for one in offers if not self._allowed or one.id in self._allowed)

    def find(self, name: str) -> Offer:
        """Give what is known of a model.

        Args:
            name: of the zoo, as `zoo.spec` forgives it, or `DEFAULT`; a denoising strength may
                follow. Never a file or a repository.
        Raises:
            Refused: there is no such model, or it cannot be used here.
        """
        plain = name.partition("@")[0]
        try:
            wanted = zoo.spec(_STANDARD if plain == DEFAULT else plain).id
        except UnknownModel as exc:
            raise Refused(f"config {name!r} is not supported: {exc}") from exc
        offer = next((one for one in self.offers() if one.id == wanted), None)
        if offer is None:
            known = ", ".join(one.id for one in self.offers() if one.available)
            raise Refused(f"config {name!r} is not supported (one of {known})")
        if not offer.available:
            raise Refused(f"model {offer.id!r} is not supported here: {offer.reason}")
        return offer

    def scale_of(self, name: str) -> int:
        """Tell a model's scale, see `find`."""
        return self.find(name).scale
