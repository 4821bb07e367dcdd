"""Which Kimi-VL a checkpoint is: the few facts that its files do not state. Knows names; never a tensor.

Instruct, Thinking and Thinking-2506 share architecture, tokenizer and template. They differ in whether an answer begins
with a thought and in the temperature that their authors recommend.
"""

from dataclasses import dataclass
from typing import Literal

IN_TOKEN_LIMIT_2506 = 16384  # only 2506 reads images of 3.2 megapixels
THINK_TRIGGER = "Think first"  # in the system turn, for models that think when told


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    temperature: float  # where generation_config.json states none
    thinks: Literal["never", "always", "when told"]


INSTRUCT = Variant("Instruct", 0.2, "never")
THINKING_2504 = Variant("Thinking", 0.6, "always")
THINKING_2506 = Variant("Thinking-2506", 0.8, "always")
NANO = Variant("nano", 0.2, "when told")


def identify(model: str, in_token_limit: int) -> Variant:
    """`model`: a hub id or folder. Its last part decides; an unnamed one with 2506's image limit is 2506."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    if "nano" in name:
        return NANO
    if "thinking" in name:
        return THINKING_2506 if "2506" in name or in_token_limit >= IN_TOKEN_LIMIT_2506 else THINKING_2504
    if "instruct" not in name and in_token_limit >= IN_TOKEN_LIMIT_2506:
        return THINKING_2506
    return INSTRUCT
