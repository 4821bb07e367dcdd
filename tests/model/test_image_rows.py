"""A tower's rows in place of pictures: every form that is taken, and each refusal by field, value and limit."""

from collections.abc import Callable

import pytest
import torch

from kimi_serve.errors import ImageError
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.model.image_rows import RowReader
from kimi_serve.model.processing import KimiVLDataParser

HIDDEN = 8
GEOMETRY = Geometry(patch_size=14, merge_height=2, merge_width=2, in_token_limit=4096)
READER = RowReader(HIDDEN, torch.bfloat16, GEOMETRY, most=3)


def rows(tokens: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(tokens * HIDDEN).view(tokens, HIDDEN).to(dtype)


FORMS = {
    "one picture": (rows(6), [6]),
    "pictures of one size": (rows(12).view(2, 6, HIDDEN), [6, 6]),
    "a list": ([rows(6), rows(2)], [6, 2]),
    "a list of single batches": ([rows(6)[None], rows(2)[None]], [6, 2]),
    "a mapping": ({"image_embeds": [rows(6), rows(2)]}, [6, 2]),
    "with grids": ({"image_embeds": [rows(6), rows(2)], "image_grid_hws": torch.tensor([[4, 6], [2, 4]])}, [6, 2]),
    "with a grid a picture": ({"image_embeds": rows(6)[None], "image_grid_hws": torch.tensor([[[6, 4]]])}, [6]),
    "with one flat grid": ({"image_embeds": rows(6), "image_grid_hws": [6, 4]}, [6]),
    "side by side": ({"image_embeds": rows(8), "image_grid_hws": [[4, 6], [2, 4]]}, [6, 2]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_a_list_of_each_pictures_rows(name: str) -> None:
    given, tokens = FORMS[name]
    read = READER.read(given)
    assert [tuple(one.shape) for one in read] == [(count, HIDDEN) for count in tokens]
    assert {one.dtype for one in read} == {torch.bfloat16}
    assert torch.equal(read[0], rows(6).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_are_kept_in_the_models_type(dtype: torch.dtype) -> None:
    [read] = RowReader(HIDDEN, torch.float32, GEOMETRY, most=1).read(rows(6, dtype))
    assert torch.equal(read, rows(6))


def with_value(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    changed = rows(6, dtype)
    changed[4, 3] = value
    return changed


REFUSED: dict[str, tuple[object, str]] = {
    "no rows": ({"image_grid_hws": [[4, 6]]}, "image_embeds: is missing"),
    "another field": ({"image_embeds": rows(6), "grid": 1}, "grid: is not supported beside image_embeds"),
    "a text": ("rows", "image_embeds: str is not supported"),
    "a hole": ([rows(6), None], r"image_embeds\[1\]: NoneType is not supported"),
    "one axis": (torch.zeros(8), r"image_embeds: shape \(8,\) is not supported"),
    "an item of three axes": ([torch.zeros(2, 6, 8)], r"image_embeds\[0\]: shape \(2, 6, 8\) is not supported"),
    "integers": ([rows(6, torch.int64)], r"image_embeds\[0\]: int64 is not supported; expected float32, bfloat16"),
    "double precision": ([rows(6, torch.float64)], r"image_embeds\[0\]: float64 is not supported"),
    "sparse": ([rows(6).to_sparse()], r"image_embeds\[0\]: a sparse, quantized or empty tensor"),
    "without data": ([rows(6).to("meta")], r"image_embeds\[0\]: a sparse, quantized or empty tensor"),
    "too narrow": ([rows(6), torch.zeros(6, 7)], r"image_embeds\[1\]: rows of 7 numbers are not supported; expected 8"),
    "none at all": ([torch.zeros(0, 8)], r"image_embeds\[0\]: 0 rows are not supported; a picture has 1 to 1338"),
    "too many": ([torch.zeros(1339, 8)], r"image_embeds\[0\]: 1339 rows are not supported; a picture has 1 to 1338"),
    "too many pictures": ([rows(6)] * 4, "image_embeds: 4 pictures are not supported; expected at most 3"),
    "not a number": ([with_value(float("nan"))], r"image_embeds\[0\]: row 4 is not finite in bfloat16"),
    "infinite": ([rows(6), with_value(float("-inf"))], r"image_embeds\[1\]: row 4 is not finite in bfloat16"),
    "another grid": (
        {"image_embeds": [rows(6)], "image_grid_hws": [[4, 4]]},
        r"image_embeds\[0\]: 6 rows do not match its grid, which has 4 tokens",
    ),
    "other grids": (
        {"image_embeds": rows(8), "image_grid_hws": [[4, 6], [4, 4]]},
        "image_embeds: 8 rows do not match image_grid_hws, which have 10 tokens",
    ),
    "fewer grids": (
        {"image_embeds": [rows(6), rows(2)], "image_grid_hws": [[4, 6]]},
        "image_grid_hws: 1 grids do not match the 2 pictures",
    ),
    "odd sides": ({"image_embeds": rows(6), "image_grid_hws": [[3, 8]]}, r"image_grid_hws\[0\]: 3x8 patches are not"),
    "no side": ({"image_embeds": rows(6), "image_grid_hws": [[0, 8]]}, r"image_grid_hws\[0\]: 0x8 patches are not"),
    "long sides": ({"image_embeds": rows(6), "image_grid_hws": [[2, 512]]}, "less than 512 a side"),
    "broken sides": ({"image_embeds": rows(6), "image_grid_hws": [[4.0, 6.0]]}, "image_grid_hws: float32 is not"),
    "words for sides": ({"image_embeds": rows(6), "image_grid_hws": ["4", "6"]}, "image_grid_hws: cannot be read"),
    "three sides": ({"image_embeds": rows(6), "image_grid_hws": [[1, 4, 6]]}, r"image_grid_hws: shape \(1, 3\) is not"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_tower_would_not_give_is_refused_by_field(name: str) -> None:
    given, said = REFUSED[name]
    with pytest.raises(ImageError, match=said):
        READER.read(given)


def test_a_number_too_large_for_the_models_type_is_refused() -> None:
    half = RowReader(HIDDEN, torch.float16, GEOMETRY, most=1)
    with pytest.raises(ImageError, match=r"image_embeds\[0\]: row 4 is not finite in float16"):
        half.read(with_value(70_000.0))


def test_a_wrong_form_is_refused_before_any_value_is_looked_at() -> None:
    """The last picture's shape, although the first one's values are wrong too."""
    with pytest.raises(ImageError, match=r"image_embeds\[1\]: rows of 7"):
        READER.read([with_value(float("nan")), torch.zeros(6, 7)])


@pytest.mark.parametrize("view", [lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, :HIDDEN]])
def test_rows_that_lie_apart_are_laid_together(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    [read] = RowReader(HIDDEN, torch.float32, GEOMETRY, most=1).read([view(rows(6))])
    assert read.is_contiguous()
    assert torch.equal(read, rows(6))


def test_rows_that_know_how_they_were_made_forget_it() -> None:
    [read] = READER.read([rows(6).requires_grad_()])
    assert not read.requires_grad


GIVEN = [rows(6), rows(6)[None], [rows(6)], {"image_embeds": rows(6)}, {"image_grid_hws": torch.tensor([[4, 6]])}]


@pytest.mark.parametrize("given", GIVEN)
def test_an_engine_takes_no_rows_unless_its_operator_says_so(given: object) -> None:
    with pytest.raises(ImageError, match="image_embeds: this engine takes pictures only; --enable-mm-embeds"):
        KimiVLDataParser(None).parse_mm_data({"image": given})


@pytest.mark.parametrize("given", GIVEN[:-1])
def test_an_engine_that_may_finds_as_many_tokens_as_rows(given: object) -> None:
    items = KimiVLDataParser(READER).parse_mm_data({"image": given})["image"]
    assert [len(one) for one in items.get_all()] == [6]
