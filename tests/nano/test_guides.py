"""The decoder's teachers look where the layer itself looks, and where the answer stands."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kimi_serve.inputs.tokenizer import Tokenizer
from nano import batches, start
from nano.batches import Batch, Source
from nano.guides import Guides, counting, scores
from nano.labels import CHARACTERS
from nano.learning import answer_loss, see
from nano.train import Run
from tests.oracle.decoder import Layer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "find", lambda names: [""])  # Debian's fonts are not on every machine
        patch.setattr(start, "PICTURES", 12)
        yield Run(tmp_path_factory.mktemp("guides"), rate=1e-3, seed=1, init_from=None)


def batch_of(run: Run, kind: str, only: str) -> Batch:
    return Source(Tokenizer.from_directory(run.folder), 3, size=3).batch(kind, only)


def test_a_guide_sees_the_layers_own_attention(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = run.model.language_model.model.layers[2]
    assert isinstance(layer, Layer)
    given: dict[str, Tensor] = {}

    def watch(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        given["weights"] = F.softmax((q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5) + mask(q.shape[2]), -1)
        return given["weights"] @ v

    def mask(length: int) -> Tensor:
        return torch.full((length, length), -torch.inf).triu(1)

    x = torch.randn(2, 9, 192)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watch)
    layer.self_attn(x)
    for head in (0, 3):
        weights = scores(layer.self_attn, x, torch.ones(2, 9, dtype=torch.bool), head).softmax(-1)
        torch.testing.assert_close(weights.view(2, 9, 9), given["weights"][:, head], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("kind", "task"), [("shapes", "point"), ("shapes", "colour"), ("which", "which")])
def test_one_who_is_asked_about_a_shape_looks_at_its_token(run: Run, kind: str, task: str) -> None:
    batch = batch_of(run, kind, task)
    tokens = batch.rows * batch.columns // 4
    shapes = batch.labels["shape"].reshape(-1)  # over all tokens of all pictures
    pads = np.flatnonzero(batch.images.flatten() >= 0)
    assert len(pads) == len(shapes) == len(batch.patches) * tokens
    length = batch.ids.shape[1]
    rows, positions = np.nonzero(batch.looks >= 0)
    assert len(rows) > 0
    for row, position in zip(rows, positions, strict=True):
        number = np.flatnonzero(pads == row * length + batch.looks[row, position])
        assert shapes[number] > 0
        if task == "point":
            np.testing.assert_allclose(
                batch.values[row, position, :2], batch.labels["spot"].reshape(-1, 2)[number[0]], atol=1e-6
            )


def test_characters_are_read_one_by_one(run: Run) -> None:
    batch = batch_of(run, "text", "word")
    tokenizer = Tokenizer.from_directory(run.folder)
    length = batch.ids.shape[1]
    pads = np.flatnonzero(batch.images.flatten() >= 0)
    characters = batch.labels["character"].reshape(-1, 2)
    for row, position in zip(*np.nonzero(batch.looks >= 0), strict=True):
        number = np.flatnonzero(pads == row * length + batch.looks[row, position])[0]
        said = tokenizer.decode([int(batch.targets[row, position])])
        assert 1 + CHARACTERS.index(said) in characters[number]


def test_every_guide_has_something_to_say(run: Run) -> None:
    guides = Guides(192)
    batch = batch_of(run, "which", "which")
    with torch.no_grad():
        hidden, inputs = guides.hidden(run.model, torch.from_numpy(batch.ids), see(run.model, batch))
        torch.testing.assert_close(hidden, run.model.hidden(torch.from_numpy(batch.ids), see(run.model, batch)))
        _, stats = guides.loss(run.model, batch, inputs)
        assert set(stats) == {"order", "looking", "looking_right"}
        batch = batch_of(run, "shapes", "count")
        _, inputs = guides.hidden(run.model, torch.from_numpy(batch.ids), see(run.model, batch))
        assert set(guides.loss(run.model, batch, inputs)[1]) == {"saying", "counting"}


def test_who_counts_shares_attention_between_all_that_is_counted(run: Run) -> None:
    batch = batch_of(run, "shapes", "count")
    asking, shares = counting(batch)
    assert len(shares) == asking.sum() == 3
    pads = np.flatnonzero(batch.images.flatten() >= 0)
    shapes = batch.labels["shape"].reshape(-1)
    for (row, position), share in zip(asking.nonzero().tolist(), shares, strict=True):
        said = round(float(batch.values[row, position, 2]) * 6)
        assert Tokenizer.from_directory(run.folder).decode([int(batch.targets[row, position])]) == str(said)
        *_, counted = next(one for one in batch.among if one[:2] == (row, position))
        assert len(counted) == said
        assert all(shapes[np.flatnonzero(pads == row * batch.ids.shape[1] + k)[0]] > 0 for k in counted)
        assert share.sum() == pytest.approx(1)
        assert share[0] == pytest.approx(1 / (said + 1))


def test_a_points_digits_stand_where_they_are_said_and_the_said_one_is_best(run: Run) -> None:
    batch = batch_of(run, "shapes", "point")
    assert len(batch.near) == 4 * len(batch.ids)  # two of x and two of y
    for row, position, shares in batch.near:
        said = batch.digits.index(int(batch.targets[row, position]))
        assert shares.sum() == pytest.approx(1, abs=1e-6)
        assert shares[said] > 0.6 * shares.max()  # 0.4949 is said 0.49; a first digit may be as good as its neighbour


def test_of_two_wrong_digits_the_nearer_costs_less(run: Run) -> None:
    """With the digit alone as the target, both would cost the same."""
    batch = batch_of(run, "shapes", "point")
    row, position, shares = batch.near[1]  # hundredths of x
    hidden = run.model.hidden(torch.from_numpy(batch.ids), see(run.model, batch)).detach()
    best = int(shares.argmax())
    near, far = (best - 1, best - 6) if best > 5 else (best + 1, best + 6)

    def loss_of_saying(digit: int) -> float:
        def logits(rows: Tensor) -> Tensor:
            made = torch.zeros(len(rows), run.model.language_model.lm_head.out_features)
            made[order, batch.digits[digit]] = 9.0
            return made

        order = int((torch.from_numpy(batch.targets) >= 0).flatten().cumsum(0)[row * batch.ids.shape[1] + position]) - 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run.model, "logits", logits)
            return float(answer_loss(run.model, batch, hidden)[0])

    assert loss_of_saying(best) < loss_of_saying(near) < loss_of_saying(far)
