"""What lm_head is given for prompts, by a plain forward. Knows the join of pictures and text; never a logit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kimi_serve.inputs.config import Checkpoint
from kimi_serve.quantize import decoder, tower
from kimi_serve.quantize.prompts import Prompt
from kimi_serve.quantize.reading import Model


@torch.no_grad()
def final_states(model: Model, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Tensor:
    """(tokens of all prompts in order, hidden) float32."""
    config = checkpoint.model
    ids = torch.tensor([token for prompt in prompts for token in prompt.ids])
    x = decoder.embed(model, ids)
    pictures = [picture for prompt in prompts for picture in prompt.pictures]
    if pictures:
        rows = tower.image_rows(model, config.vision, checkpoint.image, pictures)
        x[ids == config.media_placeholder_token_id] = rows
    return decoder.run(model, config.text, x, [len(prompt.ids) for prompt in prompts])
