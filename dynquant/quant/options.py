"""The options of a conversion as a request names them: strict, and with one spelling of each value.

An option that is unknown, misspelt or of the wrong type is refused wherever a request comes in: by
the command line, the pages, the API, the inbox, the watcher's rules or a job's document.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat, parse_menu
from dynquant.quant.recipe import Recipe
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

__all__ = ["RecipeOptions", "complaint"]

_MAX_TEXT_NAME_CHARS = 400
_MAX_MENU_CHARS = 400
_MAX_SHOWN_CHARS = 60
_TEXTS = ("calibration", "evaluation")
_IMAGES = ("calibration_images", "evaluation_images")


def _menu(value: object) -> object:
    """Formats from names with commas, sorted and without repeats."""
    if isinstance(value, str):
        if len(value) > _MAX_MENU_CHARS:
            raise InvalidOptionError("This list of formats is too long. Name each format once.")
        menu = parse_menu(value)
        return DEFAULT_MENU if set(menu) == set(DEFAULT_MENU) else menu
    return value


def _menu_text(menu: Sequence[QuantFormat]) -> str:
    return ",".join(fmt.name for fmt in menu)


_DEFAULT = Recipe(targets_bpw=())

Menu = Annotated[
    tuple[QuantFormat, ...], BeforeValidator(_menu), PlainSerializer(_menu_text, return_type=str)
]
TextName = Annotated[str, Field(min_length=1, max_length=_MAX_TEXT_NAME_CHARS)]
ImagesName = Annotated[str, Field(max_length=_MAX_TEXT_NAME_CHARS)]


class RecipeOptions(BaseModel):
    """The options of a request on how to quantize, apart from the targets.

    Attributes:
        menu: Formats to choose from; as JSON their names with commas.
        calibration: Name of the text to calibrate on.
        evaluation: Name of the held-out text.
        calibration_images: Name of a dataset with images to calibrate on; empty without.
        evaluation_images: The same of images to evaluate on.

    The other attributes are those of `quant.recipe.Recipe`.

    Raises:
        InvalidOptionError: An option is unknown, of the wrong type or out of range.

    >>> RecipeOptions.model_validate({"menu": "8g64, 4g64"}).to_json()
    {'menu': '4g64,8g64'}
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    menu: Menu = DEFAULT_MENU
    encoder: str = _DEFAULT.encoder
    effort: str = _DEFAULT.effort
    distil: Annotated[bool, Field(validation_alias=AliasChoices("distil", "refine"))] = (
        _DEFAULT.distil  # older jobs call it `refine`
    )
    time_budget_mins: float | None = _DEFAULT.time_budget_mins
    calibration_tokens: int = _DEFAULT.calibration_tokens
    evaluation_tokens: int = _DEFAULT.evaluation_tokens
    context_tokens: int = _DEFAULT.context_tokens
    seed: int = _DEFAULT.seed
    dequantize: bool = _DEFAULT.dequantize
    dtype: str = _DEFAULT.dtype
    tower: str = _DEFAULT.tower
    calibration: TextName = DEFAULT_CALIBRATION
    evaluation: TextName = DEFAULT_EVALUATION
    calibration_images: ImagesName = ""
    evaluation_images: ImagesName = ""

    @model_validator(mode="wrap")
    @classmethod
    def _in_sentences(cls, value: Any, validate: Any) -> Any:
        try:
            options = validate(value)
        except ValidationError as error:
            raise InvalidOptionError(complaint(error, cls.model_fields, "option")) from error
        options.recipe(())  # refuses values that are out of range for every model
        return options

    @property
    def texts(self) -> dict[str, str]:
        """Role of a text, which is also the name of its option, → its name."""
        return {role: getattr(self, role) for role in _TEXTS}

    @property
    def images(self) -> dict[str, str]:
        """Role of images, which is also the name of its option, → their name; empty without."""
        return {role: name for role in _IMAGES if (name := getattr(self, role))}

    def recipe(self, targets_bpw: tuple[float, ...]) -> Recipe:
        """The recipe of these options and the targets.

        Raises:
            InvalidOptionError: A value is out of range for every model.
        """
        values = {name: value for name, value in self if name not in (*_TEXTS, *_IMAGES)}
        return Recipe(targets_bpw=targets_bpw, **values)

    def to_json(self) -> dict[str, Any]:
        """The options that differ from their defaults, as JSON types."""
        return self.model_dump(mode="json", exclude_defaults=True)


def complaint(error: ValidationError, fields: Iterable[str], kind: str) -> str:
    """A message on the first part of a request that pydantic refuses: the problem and the remedy.

    Args:
        error: Pydantic's error.
        fields: The known names.
        kind: The word for them in the message: `field` or `option`.
    """
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return f"A request's {kind}s are an object of names and values."
    name = str(first["loc"][0])[:_MAX_SHOWN_CHARS]
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        close = get_close_matches(name, fields, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Leave it out."
        return f"A request has no {kind} '{name}'. {hint}"
    problem = str(first["msg"]).removeprefix("Value error, ")
    value = repr(first["input"])[:_MAX_SHOWN_CHARS]
    return f"A request's {kind} '{name}' cannot be {value}: {problem[0].lower()}{problem[1:]}."
