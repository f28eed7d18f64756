"""Orders of visitors: the repos that they make, their readers, and the options they ask for."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.errors import InvalidOptionError, RequestError
from dynquant.model.access import Access
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.quant.formats import QuantFormat, parse_menu
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import variant_of
from dynquant.texts.defaults import CALIBRATIONS, DEFAULT_CALIBRATION
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.sign_in import Visitor

__all__ = ["Order", "Outcome", "destination_of", "menu_of", "options_of", "outcome_of"]

_MAX_FORMATS_TEXT = 400


@dataclass(frozen=True, kw_only=True)
class Order:
    """The fields that a visitor fills in.

    Attributes:
        model: Name or address.
        formats: Names with commas; empty for all.
        calibration: A key of `CALIBRATIONS`; empty for the default.
        destination: Namespace or name template; empty for the default.
    """

    model: str
    targets_bpw: tuple[float, ...]
    formats: str = ""
    calibration: str = ""
    private: bool = False
    destination: str = ""
    notify_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The repos that an order makes, and who may read them."""

    repo_ids: tuple[str, ...]
    access: Access


def outcome_of(
    order: Order,
    preview: ModelPreview,
    *,
    visitor: Visitor | None,
    namespace: str | None,
    is_space: bool,
) -> Outcome:
    """The outcome of an order, as its runner will bring it about.

    Args:
        order: The order.
        preview: Its model.
        visitor: None for a visitor that has not signed in.
        namespace: The default destination; None if it is unknown.
        is_space: Whether visitors are strangers, whose unusual quants have names of their own.

    Raises:
        RequestError: The visitor may not ask for this, or names an impossible destination.
    """
    options = options_of(order)
    variant = ""
    if is_space:
        variant = variant_of(
            options.recipe(order.targets_bpw),
            texts={**options.texts, **options.images},
            default_texts=RecipeOptions().texts,
        )
    ids = repo_ids(
        destination_of(order, visitor=visitor, namespace=namespace),
        {quantized_name(preview.repo_id, bpw): (preview.repo_id, bpw) for bpw in order.targets_bpw},
        variant=variant,
    )
    _require_may_hide(order, visitor)
    access = Access(is_private=order.private or preview.is_private, gated=preview.gated)
    return Outcome(repo_ids=tuple(ids.values()), access=access)


def destination_of(order: Order, *, visitor: Visitor | None, namespace: str | None) -> str:
    """The destination; only operators may choose another than the default.

    Raises:
        RequestError: The visitor may not choose it, or there is none.
    """
    wanted = order.destination.strip()
    if wanted and wanted != namespace and not (visitor and visitor.is_operator):
        raise RequestError(
            f"Models are published to '{namespace}' here. Leave the destination empty, and copy "
            "the finished model to your account on its job page."
        )
    destination = wanted or namespace
    if not destination:
        raise RequestError(
            "There is no default destination. Fill in a destination, such as your name on the "
            "Hub, or set DYNQUANT_PUBLISH_TO."
        )
    return destination


def menu_of(formats: str) -> tuple[QuantFormat, ...]:
    """The formats of a list with commas.

    Raises:
        InvalidOptionError: It is too long, or names an unknown format.
    """
    if len(formats) > _MAX_FORMATS_TEXT:
        raise InvalidOptionError("This list of formats is too long. Name each format once.")
    return parse_menu(formats)


def options_of(order: Order) -> RecipeOptions:
    """The options of the request that an order becomes.

    Raises:
        InvalidOptionError: It names an unknown calibration set or format.
    """
    if order.calibration and order.calibration not in CALIBRATIONS:
        raise InvalidOptionError(
            f"There is no calibration set '{order.calibration[:60]}'. Choose one of: "
            f"{'; '.join(CALIBRATIONS)}."
        )
    calibration = CALIBRATIONS.get(order.calibration, DEFAULT_CALIBRATION)
    menu = {"menu": order.formats} if order.formats.strip() else {}
    return RecipeOptions.model_validate({"calibration": calibration, **menu})


def _require_may_hide(order: Order, visitor: Visitor | None) -> None:
    if order.private and not (visitor and visitor.is_operator):
        raise RequestError(
            "A private model would be private to the owner of this Space. Leave it public, and "
            "make a private copy in your account on its job page."
        )
