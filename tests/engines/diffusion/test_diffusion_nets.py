"""ResShift's nets: the published counts, names and shapes; windows, masks, codes, attention."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torch
from torch import Tensor, nn

from engines.diffusion import autoencoder as ae
from engines.diffusion import unet as un
from engines.diffusion.autoencoder import AutoencoderShape, VqAutoencoder
from engines.diffusion.unet import SwinUnet, UnetShape


def released() -> tuple[SwinUnet, VqAutoencoder]:
    with torch.device("meta"):
        return SwinUnet(UnetShape()), VqAutoencoder(AutoencoderShape())


def test_the_nets_have_the_published_number_of_parameters() -> None:
    counts = [sum(p.numel() for p in net.parameters()) for net in released()]
    assert counts == [118_593_583, 55_322_782]


# Of the published definitions, made with the published configurations of v1 and v3.
PUBLISHED = (
    (564, "4ec11eebdda7b942c3c034791050e953e26791d2b95e7efeebac92e871f9be37"),
    (205, "eafd021b5e4336ba6ced77ec6ab44fe1f9d8c11872f6b002ab5e56a78a351ec2"),
)


def test_names_and_shapes_of_all_tensors_are_the_published_ones() -> None:
    for net, (count, digest) in zip(released(), PUBLISHED, strict=True):
        rows = sorted([name, list(tensor.shape)] for name, tensor in net.state_dict().items())
        assert len(rows) == count
        assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == digest


def test_masks_and_positions_are_made_where_weights_are_not() -> None:
    unet, _ = released()
    assert {parameter.device.type for parameter in unet.parameters()} == {"meta"}
    assert {buffer.device.type for buffer in unet.buffers()} == {"cpu"}


def waves(pace: float, *shape: int) -> Tensor:
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(places * places * pace).float().reshape(shape)


def six_of(tensor: Tensor) -> list[float]:
    flat = tensor.flatten()
    return [flat[place].item() for place in torch.linspace(0, len(flat) - 1, 6).long()]


def test_the_unet_computes_what_the_published_definition_does(unet: SwinUnet) -> None:
    """With the same weights; the numbers are that definition's."""
    with torch.no_grad():
        y = unet(waves(0.11, 1, 3, 24, 40), torch.tensor([3]), waves(0.23, 1, 3, 24, 40))
    assert (y.mean().item(), y.std().item()) == pytest.approx((0.094899, 0.048713), abs=2e-6)
    expected = [0.104754, 0.063155, 0.037715, 0.047775, 0.142187, 0.148259]
    assert six_of(y) == pytest.approx(expected, abs=5e-6)


def test_the_autoencoder_computes_what_the_published_definition_does(
    autoencoder: VqAutoencoder,
) -> None:
    latent = autoencoder.encode(waves(0.05, 1, 3, 32, 48))
    expected = [-0.136179, -0.122277, 0.117184, 0.041365, -0.153786, -0.16226]
    assert six_of(latent) == pytest.approx(expected, abs=5e-6)
    picture = autoencoder.decode(latent)
    expected = [-0.17041, -0.216182, -0.17889, -0.149923, -0.011627, -0.116449]
    assert six_of(picture) == pytest.approx(expected, abs=5e-6)
    assert picture.std().item() == pytest.approx(0.077787, abs=2e-6)


def test_the_released_unet_wants_multiples_of_64() -> None:
    assert UnetShape().multiple == 64
    assert AutoencoderShape().factor == 4


def test_other_sizes_are_refused(unet: SwinUnet) -> None:
    assert unet.shape.multiple == 8
    x = torch.zeros(1, 3, 8, 20)
    with pytest.raises(ValueError, match="20x8 is no multiple of 8"):
        unet(x, torch.zeros(1, dtype=torch.long), x)


def test_each_picture_of_a_batch_is_on_its_own(unet: SwinUnet) -> None:
    torch.manual_seed(0)
    x, source = torch.randn(2, 3, 16, 24), torch.rand(2, 3, 16, 24)
    both = unet(x, torch.tensor([0, 3]), source)
    for number, step in enumerate((0, 3)):
        one = slice(number, number + 1)
        alone = unet(x[one], torch.tensor([step]), source[one])
        torch.testing.assert_close(both[one], alone, atol=1e-5, rtol=0)
    assert (both[:1] - unet(x[:1], torch.tensor([3]), source[:1])).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(8, 16), (16, 16), (24, 40)])
def test_windows_come_back_to_their_places(size: tuple[int, int]) -> None:
    x = torch.arange(2 * 3 * size[0] * size[1]).reshape(2, 3, *size)
    windows = un.windows_of(x, 4)
    assert windows.shape == (2 * size[0] * size[1] // 16, 16, 3)
    assert torch.equal(windows[1].reshape(4, 4, 3), x[0, :, :4, 4:8].permute(1, 2, 0))
    assert torch.equal(un.picture_of(windows, 4, size), x)


def test_relative_positions_are_numbered_by_row_and_column() -> None:
    index = un.relative_positions(4)
    for a in range(16):
        for b in range(16):
            down, right = a // 4 - b // 4, a % 4 - b % 4
            assert index[a, b] == (down + 3) * 7 + right + 3


def test_the_mask_parts_left_from_right_in_the_lowest_windows_alone() -> None:
    mask = un.shift_mask(12, 8, 4, 2).reshape(3, 2, 16, 16)
    assert (mask[:2] == 0).all()
    for a in range(16):
        for b in range(16):
            apart = (a % 4 >= 2) != (b % 4 >= 2)
            assert (mask[2, :, a, b] == (-100 if apart else 0)).all()


def test_a_mask_is_made_for_sizes_that_training_did_not_have(unet: SwinUnet) -> None:
    block = unet.middle_block[1].blocks[1]
    assert isinstance(block, un.SwinBlock)
    assert block.attn_mask is not None
    kept = block._mask(torch.zeros(1, 32, 8, 8))
    assert kept is block.attn_mask
    wide = block._mask(torch.zeros(1, 32, 4, 16))  # as many windows, in one row
    assert wide is not None
    assert wide.shape == kept.shape
    assert not torch.equal(wide, kept)
    unshifted = unet.middle_block[1].blocks[0]
    assert isinstance(unshifted, un.SwinBlock)
    assert unshifted._mask(torch.zeros(1, 32, 8, 8)) is None


def test_what_a_mask_keeps_apart_does_not_see_each_other() -> None:
    torch.manual_seed(0)
    attention = un.WindowAttention(32, 1, 4).requires_grad_(False)
    x = torch.randn(1, 16, 32)
    mask = un.shift_mask(4, 4, 4, 2)
    before = attention(x, mask)
    x[0, 3] += 1  # a pixel of the right half
    change = (attention(x, mask) - before).abs().amax(2)[0]
    right = torch.arange(16) % 4 >= 2
    assert (change[right] > 1e-3).all()
    assert (change[~right] < 1e-6).all()


def test_the_step_is_told_in_cosines_and_sines() -> None:
    embedding = un.step_embedding(torch.tensor([0, 7]), 8)
    assert embedding.shape == (2, 8)
    for number in range(4):
        angle = 7 * 10_000 ** (-number / 4)
        assert embedding[1, number].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert embedding[1, 4 + number].item() == pytest.approx(math.sin(angle), abs=1e-6)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_attention_in_parts_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = ae.AttnBlock(32).requires_grad_(False)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 32, 6, 5)
    whole = block(x)
    y = block.norm(x)
    q, k, v = (part(y).flatten(2) for part in (block.q, block.k, block.v))
    shares = torch.softmax(torch.einsum("ncq,nck->nqk", q, k) / 32**0.5, 2)
    by_hand = x + block.proj_out(torch.einsum("nqk,nck->ncq", shares, v).reshape(x.shape))
    torch.testing.assert_close(whole, by_hand, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(ae, "_AT_ONCE", 2 * 30 * 7)
    torch.testing.assert_close(block(x), whole, atol=1e-5, rtol=1e-5)


def test_vectors_become_their_nearest_code(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    book = ae.CodeBook(50).requires_grad_(False)
    nn.init.normal_(book.embedding.weight)
    x = torch.randn(2, 3, 4, 5)
    distances = torch.cdist(x.permute(0, 2, 3, 1).reshape(-1, 3), book.embedding.weight)
    nearest = book.embedding.weight[distances.argmin(1)]
    expected = nearest.reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    assert torch.equal(book(x), expected)
    monkeypatch.setattr(ae, "_AT_ONCE", 50 * 7)
    assert torch.equal(book(x), expected)


def test_latents_are_a_quarter_of_the_picture(autoencoder: VqAutoencoder) -> None:
    latent = autoencoder.encode(torch.rand(1, 3, 32, 64) * 2 - 1)
    assert latent.shape == (1, 3, 8, 16)
    assert autoencoder.decode(latent).shape == (1, 3, 32, 64)


def test_the_decoder_sees_codes_alone(autoencoder: VqAutoencoder) -> None:
    codes = autoencoder.quantize.embedding.weight[:8].T.reshape(1, 3, 2, 4)
    near = codes + 1e-6
    assert torch.equal(autoencoder.decode(near), autoencoder.decode(codes))
