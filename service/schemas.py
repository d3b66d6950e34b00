"""What clients send and get, as pydantic models: the OpenAPI document is made of them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Format = Literal["png", "jpeg", "webp", "tiff", "bmp"]
#: Media type of each format that is written.
MEDIA: dict[Format, str] = {
    "png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff",
    "bmp": "image/bmp",
}  # fmt: skip


class Order(BaseModel):
    """How to upscale. What is left out comes from the session, else from the server."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"model": "default-x4"}]}
    )

    model: Annotated[
        str | None,
        Field(max_length=100, description="Name of a model, as GET /models lists them."),
    ] = None
    outscale: Annotated[
        float | None,
        Field(gt=0, le=16, allow_inf_nan=False, description="Result / source; else the model's."),
    ] = None
    width: Annotated[
        int | None, Field(ge=1, le=7680, description="The result fits into width x height.")
    ] = None
    height: Annotated[int | None, Field(ge=1, le=7680, description="See width.")] = None
    format: Annotated[Format | None, Field(description="Else by the header Accept, else PNG.")] = (
        None
    )
    quality: Annotated[
        int | None, Field(ge=1, le=100, description="Of JPEG and WebP; WebP is lossless at 100.")
    ] = None
    denoise: Annotated[
        float | None,
        Field(ge=0, le=1, allow_inf_nan=False, description="Of a model that takes a strength."),
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=1 << 31, description="Of a model that draws details.")
    ] = None

    def over(self, other: Order) -> Order:
        """Give this order with what it leaves open from another; sizes go together."""
        own = self.model_dump(exclude_none=True)
        rest = other.model_dump(exclude_none=True)
        if own.keys() & {"outscale", "width", "height"}:
            rest = {k: v for k, v in rest.items() if k not in ("outscale", "width", "height")}
        if "model" in own:
            rest.pop("denoise", None)  # of another model
        return Order(**rest | own)


class Configuration(Order):
    """A configuration file."""

    model: Annotated[str, Field(max_length=100, description="Name of a model.")]

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together")
        return self


class Configured(BaseModel):
    """The configuration that the session has from now on."""

    session: Annotated[
        str, Field(description="Send it back as the cookie overlay_session or as X-Session.")
    ]
    configuration: Order
    scale: Annotated[int, Field(description="Of the model.")]
    licence: Annotated[str, Field(description="Of the model's weights.")]
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "session": "3q0ZbV3pT2m1xW8sYk7cJd5hN4fLr6uA",
                    "configuration": {"model": "default-x4", "format": "png"},
                    "scale": 4,
                    "licence": "Apache-2.0",
                }
            ]
        }
    )


class ModelRow(BaseModel):
    """A model."""

    id: str
    scale: int
    licence: str
    author: str
    notes: str
    available: Annotated[bool, Field(description="It can be used on this server.")]
    reason: Annotated[str, Field(description="Why not, and what to do.")]
    loaded: Annotated[bool, Field(description="It is in memory now.")]
    denoise: Annotated[bool, Field(description="It takes a denoising strength.")]
    live: Annotated[bool, Field(description="It is meant for frames, not for single pictures.")]


class Models(BaseModel):
    """The models."""

    default: str
    models: list[ModelRow]


class Limits(BaseModel):
    """What the server takes."""

    body_bytes: int
    output: Annotated[str, Field(description="Largest result, lying or standing.")]
    batch: int
    workers: int
    queue: int
    streams: int
    request_s: float


class Info(BaseModel):
    """The server."""

    name: str
    version: str
    backend: str
    model: Annotated[str, Field(description="Of requests that name none.")]
    formats: list[str]
    limits: Limits
    documentation: str


class Health(BaseModel):
    """Whether it runs, or can take requests."""

    status: Literal["ok", "starting", "stopping", "broken"]
    reason: str = ""


class Problem(BaseModel):
    """What went wrong, and what to do."""

    detail: str
