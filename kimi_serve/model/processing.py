"""Multimodal inputs for vLLM: images -> patches, grids and placeholders, by kimi_serve.inputs. Knows no weights."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    EmbeddingFieldRole,
    ImageEmbeddingItems,
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataItems,
    MultiModalDataParser,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdate,
)

from kimi_serve.errors import ImageError
from kimi_serve.inputs.config import ImageConfig, parse_image_config
from kimi_serve.inputs.geometry import Geometry
from kimi_serve.inputs.image_processor import ImageProcessor
from kimi_serve.model.image_rows import GRIDS, ROWS, RowReader

MAX_IMAGES = 512  # a prompt; more do not fit 131,072 tokens at a useful size


class KimiVLDataParser(MultiModalDataParser):
    """Leaves images in their own mode: vLLM's own lays transparent ones on white, where the model drops alpha.

    Rows in place of images are read where the operator allows them.
    """

    # What vLLM reads of a request's part, and what an encoder's engine says of a picture beside its rows.
    embedding_fields: ClassVar[Mapping[str, Mapping[str, EmbeddingFieldRole]]] = {
        "image": {ROWS: "values", GRIDS: "metadata"}
    }

    def __init__(self, rows: RowReader | None) -> None:
        super().__init__()
        self._rows = rows

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        images = [data] if isinstance(data, Image.Image | MediaWithBytes) else data
        if isinstance(images, Sequence) and all(
            isinstance(item, Image.Image | MediaWithBytes | None) for item in images
        ):
            return ImageProcessorItems(images)
        if _are_rows(data):
            if self._rows is None:
                raise ImageError(f"{ROWS}: this engine takes pictures only; --enable-mm-embeds makes it take rows")
            return ImageEmbeddingItems(self._rows.read(data))
        return super()._parse_image_data(data)


def _are_rows(data: Any) -> bool:
    return isinstance(data, Mapping | torch.Tensor) or (
        isinstance(data, list | tuple) and any(isinstance(item, torch.Tensor) for item in data)
    )


class KimiVLProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about images before it has one."""

    def get_data_parser(self) -> MultiModalDataParser:
        config = self.ctx.model_config
        if not self.ctx.get_mm_config().enable_mm_embeds:
            return KimiVLDataParser(None)
        # A limit of 0 leaves out the tower, and vLLM sets none for rows then.
        most = self.allowed_mm_limits["image"] or MAX_IMAGES
        return KimiVLDataParser(RowReader(config.get_inputs_embeds_size(), config.dtype, self.geometry, most))

    @cached_property
    def image_config(self) -> ImageConfig:
        return parse_image_config(self.ctx.get_hf_image_processor_config())

    @property
    def geometry(self) -> Geometry:
        return self.image_config.geometry

    @cached_property
    def image_processor(self) -> ImageProcessor:
        return ImageProcessor(self.image_config)

    @property
    def image_token_id(self) -> int:
        return self.get_hf_config().media_placeholder_token_id

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": MAX_IMAGES}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """The checkpoint's own bound: the encoder's budget must hold the costliest image that is accepted."""
        return {"image": self.geometry.max_tokens()}

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        return self.geometry.num_tokens(image_width, image_height)


class KimiVLDummyInputsBuilder(BaseDummyInputsBuilder[KimiVLProcessingInfo]):
    """The largest ordinary image, for vLLM's memory profile."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "<|media_pad|>" * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, MultiModalDummyOptions]
    ) -> MultiModalDataDict:
        geometry = self.info.geometry
        side = int(geometry.in_token_limit**0.5) * geometry.patch_size
        images = self._get_dummy_images(
            width=side, height=side, num_images=mm_counts.get("image", 0), overrides=mm_options.get("image")
        )
        return {"image": images}


class KimiVLMultiModalProcessor(BaseMultiModalProcessor[KimiVLProcessingInfo]):
    """uint8 patches (sum(h*w), 3, p, p) and grids (images, 2); one placeholder becomes an image's tokens."""

    def _call_hf_processor(self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        if hf_kwargs:
            raise ImageError(f"mm_processor_kwargs: {sorted(hf_kwargs)} are not supported; image settings are fixed")
        images = hf_data["images"]
        assert isinstance(images, Sequence)
        # vLLM prepares one request at a time, so that these are all the threads there are.
        packed = self.info.image_processor.all(images, threads=len(os.sched_getaffinity(0)))
        return BatchFeature(
            {
                "pixel_values": torch.from_numpy(packed.patches),
                "image_grid_hws": torch.tensor([(grid.height, grid.width) for grid in packed.grids]),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        if ROWS in hf_inputs:
            return {key: MultiModalFieldConfig.batched("image", keep_on_cpu=key == GRIDS) for key in (ROWS, GRIDS)}
        grids = hf_inputs.get("image_grid_hws", torch.empty((0, 2), dtype=torch.long))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", grids.prod(-1)),
            "image_grid_hws": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        token = self.info.image_token_id

        def placeholder_run(index: int) -> list[int]:
            images = mm_items.get_items("image", (ImageEmbeddingItems, ImageProcessorItems))
            if isinstance(images, ImageEmbeddingItems):
                return [token] * images.get_feature_size(index)
            size = images.get_image_size(index)
            return [token] * self.info.geometry.num_tokens(size.width, size.height)

        return [PromptReplacement(modality="image", target=[token], replacement=placeholder_run)]
