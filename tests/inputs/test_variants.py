"""Which checkpoint is which, by the name that its owner gave it."""

import pytest

from kimi_serve.inputs.variants import INSTRUCT, NANO, THINKING_2504, THINKING_2506, identify


@pytest.mark.parametrize(
    ("model", "in_token_limit", "variant"),
    [
        ("moonshotai/Kimi-VL-A3B-Instruct", 4096, INSTRUCT),
        ("moonshotai/Kimi-VL-A3B-Thinking", 4096, THINKING_2504),
        ("moonshotai/Kimi-VL-A3B-Thinking-2506", 16384, THINKING_2506),
        ("/models/kimi-vl-a3b-thinking-2506/", 16384, THINKING_2506),
        ("/models/kimi-vl-nano", 256, NANO),
        ("/models/kimi-vl-nano-thinking", 256, NANO),
    ],
)
def test_published_names_are_recognised(model, in_token_limit, variant):
    assert identify(model, in_token_limit) is variant


def test_image_limit_tells_2506_where_the_name_does_not():
    assert identify("/models/latest", 16384) is THINKING_2506
    assert identify("/models/my-thinking-finetune", 16384) is THINKING_2506


def test_instruct_by_name_stays_instruct_with_larger_images():
    assert identify("/models/kimi-vl-instruct-hd", 16384) is INSTRUCT


def test_unnamed_checkpoint_is_taken_for_instruct():
    assert identify("/models/latest", 4096) is INSTRUCT


def test_only_the_last_part_of_a_path_counts():
    assert identify("/home/thinking/nano/kimi-vl-instruct", 4096) is INSTRUCT


@pytest.mark.parametrize(
    ("variant", "temperature", "thinks"),
    [
        (INSTRUCT, 0.2, "never"),
        (THINKING_2504, 0.6, "always"),
        (THINKING_2506, 0.8, "always"),
        (NANO, 0.2, "when told"),
    ],
)
def test_each_variant_has_its_authors_settings(variant, temperature, thinks):
    assert (variant.temperature, variant.thinks) == (temperature, thinks)
