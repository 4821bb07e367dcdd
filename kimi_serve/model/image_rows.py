"""Rows that a tower has made already, given in place of pictures: checked by form and value. Knows tensors; never vLLM.

A picture's rows are (tokens, hidden), as the projector gives them, in raster order. Several come as (pictures, tokens,
hidden), as a list, or one after the other with their grids; a grid is optional otherwise, and is compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from kimi_serve.errors import ImageError
from kimi_serve.inputs.geometry import SIDE_LIMIT, Geometry

ROWS, GRIDS = "image_embeds", "image_grid_hws"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class RowReader:
    """What the model's own tower would give."""

    hidden: int
    dtype: torch.dtype
    geometry: Geometry
    most: int  # pictures

    def read(self, given: object) -> list[torch.Tensor]:
        """Each picture's rows in the model's type. `given`: tensor, list of tensors, or a mapping of ROWS and GRIDS.

        Raises ImageError for the first field that is wrong; values are looked at last.
        """
        rows, grids = _fields(given)
        tokens = None if grids is None else [self._tokens(n, grid) for n, grid in enumerate(_pairs(grids))]
        pictures = _apart(rows, tokens)
        if len(pictures) > self.most:
            raise ImageError(f"{ROWS}: {len(pictures)} pictures are not supported; expected at most {self.most}")
        if tokens is not None and len(tokens) != len(pictures):
            raise ImageError(f"{GRIDS}: {len(tokens)} grids do not match the {len(pictures)} pictures of {ROWS}")
        for number, one in enumerate(pictures):
            self._check(f"{ROWS}[{number}]", one, None if tokens is None else tokens[number])
        return [self._cast(f"{ROWS}[{number}]", one) for number, one in enumerate(pictures)]

    def _tokens(self, number: int, grid: Sequence[int]) -> int:
        """Of a grid of patches."""
        down, across = self.geometry.merge_height, self.geometry.merge_width
        height, width = grid
        if not (0 < height < SIDE_LIMIT and 0 < width < SIDE_LIMIT) or height % down or width % across:
            raise ImageError(
                f"{GRIDS}[{number}]: {height}x{width} patches are not supported; "
                f"expected multiples of {down}x{across}, less than {SIDE_LIMIT} a side"
            )
        return height // down * (width // across)

    def _check(self, where: str, rows: torch.Tensor, tokens: int | None) -> None:
        if rows.layout is not torch.strided or rows.is_quantized or rows.is_meta:
            raise ImageError(f"{where}: a sparse, quantized or empty tensor is not supported; expected a dense one")
        if rows.dtype not in DTYPES:
            raise ImageError(f"{where}: {_name(rows.dtype)} is not supported; expected {', '.join(map(_name, DTYPES))}")
        if rows.ndim != 2:
            raise ImageError(f"{where}: shape {tuple(rows.shape)} is not supported; expected (tokens, {self.hidden})")
        if rows.shape[1] != self.hidden:
            raise ImageError(f"{where}: rows of {rows.shape[1]} numbers are not supported; expected {self.hidden}")
        most = self.geometry.max_tokens()
        if not 0 < len(rows) <= most:
            raise ImageError(f"{where}: {len(rows)} rows are not supported; a picture has 1 to {most}")
        if tokens is not None and len(rows) != tokens:
            raise ImageError(f"{where}: {len(rows)} rows do not match its grid, which has {tokens} tokens")

    def _cast(self, where: str, rows: torch.Tensor) -> torch.Tensor:
        cast = rows.detach().to(self.dtype).contiguous()
        finite = cast.isfinite().all(-1)
        if not finite.all():
            row = int(finite.logical_not().nonzero()[0])
            raise ImageError(f"{where}: row {row} is not finite in {_name(self.dtype)}; expected finite numbers")
        return cast


def _fields(given: object) -> tuple[object, object | None]:
    if not isinstance(given, Mapping):
        return given, None
    if unknown := sorted(map(str, given.keys() - {ROWS, GRIDS})):
        raise ImageError(f"{unknown[0]}: is not supported beside {ROWS}; supported: {GRIDS}")
    if given.get(ROWS) is None:
        # An engine that waits for rows which nobody sends would end, and everybody's requests with it.
        raise ImageError(f"{ROWS}: is missing; a request holds its pictures, or their rows")
    return given[ROWS], given.get(GRIDS)


def _pairs(grids: object) -> list[list[int]]:
    try:
        read = torch.as_tensor(grids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ImageError(f"{GRIDS}: cannot be read as integers: {error}") from error
    if read.is_meta or read.layout is not torch.strided or read.is_floating_point() or read.dtype is torch.bool:
        raise ImageError(f"{GRIDS}: {_name(read.dtype)} is not supported; expected integers, (height, width) a picture")
    if read.ndim not in (1, 2, 3) or read.shape[-1] != 2:
        raise ImageError(f"{GRIDS}: shape {tuple(read.shape)} is not supported; expected (pictures, 2)")
    pairs: list[list[int]] = read.reshape(-1, 2).tolist()
    return pairs


def _apart(rows: object, tokens: Sequence[int] | None) -> list[torch.Tensor]:
    if isinstance(rows, list | tuple):
        for number, one in enumerate(rows):
            if not isinstance(one, torch.Tensor):
                raise ImageError(f"{ROWS}[{number}]: {type(one).__name__} is not supported; expected a tensor")
        return [one[0] if one.ndim == 3 and len(one) == 1 else one for one in rows]
    if not isinstance(rows, torch.Tensor):
        raise ImageError(f"{ROWS}: {type(rows).__name__} is not supported; expected a tensor or a list of tensors")
    if rows.ndim == 3:
        return list(rows)
    if rows.ndim != 2:
        raise ImageError(f"{ROWS}: shape {tuple(rows.shape)} is not supported; expected (pictures, tokens, hidden)")
    if tokens is None:
        return [rows]
    if sum(tokens) != len(rows):
        raise ImageError(f"{ROWS}: {len(rows)} rows do not match {GRIDS}, which have {sum(tokens)} tokens")
    return list(rows.split(list(tokens)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
