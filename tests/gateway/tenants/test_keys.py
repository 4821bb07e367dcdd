"""The text of a key, what it may do, and that its secret shows up nowhere."""

import copy
import logging
import re
import traceback
from datetime import datetime, timedelta

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from kimi_serve.gateway.tenants import admin
from kimi_serve.gateway.tenants.keys import HASHER, new_plain_key, parse, redacted, require_model, require_scope
from kimi_serve.protocol.errors import ApiError


def test_a_key_reads_prefix_id_and_256_bits() -> None:
    assert re.fullmatch(r"ksk_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}", new_plain_key().reveal())


def test_a_thousand_keys_are_all_different() -> None:
    made = [new_plain_key() for _ in range(1000)]
    assert len({key.id for key in made}) == len({key.secret for key in made}) == 1000


def test_a_key_is_parsed_into_what_made_it() -> None:
    key = new_plain_key()
    assert parse(key.reveal()) == key


@given(st.text())
def test_other_texts_are_no_keys(text: str) -> None:
    assert parse(text) is None


def test_a_key_with_something_behind_it_is_no_key() -> None:
    assert parse(new_plain_key().reveal() + "\n") is None


def test_the_hash_is_argon2id() -> None:
    assert HASHER.hash("x").startswith("$argon2id$")


def test_a_secret_is_in_no_repr_and_no_record(now: datetime, hasher: PasswordHasher) -> None:
    made = admin.create("acme", now, hasher=hasher)
    for shown in (
        repr(made),
        str(made),
        repr(made.plain),
        f"{made.plain}",
        repr(copy.copy(made.plain)),
        repr(made.key),
    ):
        assert made.plain.secret not in shown
        assert made.key.secret_hash not in shown


def test_a_logged_key_is_redacted_and_keeps_its_id(caplog: pytest.LogCaptureFixture) -> None:
    plain = new_plain_key()
    logging.getLogger("test").warning(redacted(f"Authorization: Bearer {plain.reveal()}, again {plain.reveal()}"))
    assert plain.secret not in caplog.text
    assert caplog.text.count(plain.id) == 2


def test_a_key_that_was_cut_is_redacted_too() -> None:
    assert redacted("ksk_0123456789ab_secre") == "ksk_0123456789ab_***"


def test_a_key_may_use_models_that_one_of_its_globs_matches(now: datetime, hasher: PasswordHasher) -> None:
    key = admin.create("acme", now, models=["kimi-vl-*", "other"], hasher=hasher).key
    require_model(key, "kimi-vl-a3b")
    with pytest.raises(ApiError) as refused:
        require_model(key, "another")
    assert (refused.value.code, refused.value.param) == ("model_not_allowed", "model")


def test_a_scope_that_the_key_lacks_is_refused(now: datetime, hasher: PasswordHasher) -> None:
    key = admin.create("acme", now, scopes=["chat"], hasher=hasher).key
    require_scope(key, "chat")
    with pytest.raises(ApiError) as refused:
        require_scope(key, "admin")
    assert refused.value.code == "scope_missing"


def test_the_secret_is_shown_once_and_in_no_listing(now: datetime, hasher: PasswordHasher) -> None:
    made = admin.create("acme", now, name="ci", hasher=hasher)
    assert made.shown().count(made.plain.secret) == 1
    listed = admin.listing([made.key], now)
    assert made.key.id in listed
    assert made.plain.secret not in listed
    assert made.key.secret_hash not in listed


def test_a_revoked_key_keeps_the_time_of_its_first_revocation(now: datetime, hasher: PasswordHasher) -> None:
    key = admin.revoke(admin.create("acme", now, hasher=hasher).key, now)
    assert admin.revoke(key, now + timedelta(days=1)).revoked == now
    assert admin.state(key, now) == "revoked"


def test_rotation_keeps_the_account_and_ends_the_old_key_after_the_grace(now: datetime, hasher: PasswordHasher) -> None:
    old = admin.create("acme", now, name="ci", hasher=hasher).key
    later = now + timedelta(days=30)
    made, ending = admin.rotate(old, later, timedelta(hours=1), hasher)
    assert (made.key.account, made.key.tenant, made.key.name) == (old.id, "acme", "ci")
    assert made.key.id != old.id
    assert hasher.verify(made.key.secret_hash, made.plain.secret)
    assert ending.is_usable(later + timedelta(minutes=59))
    assert admin.state(ending, later + timedelta(hours=1)) == "expired"


def test_rotation_lets_no_old_key_live_longer(now: datetime, hasher: PasswordHasher) -> None:
    soon = now + timedelta(minutes=1)
    old = admin.create("acme", now, expires=soon, hasher=hasher).key
    assert admin.rotate(old, now, timedelta(hours=1), hasher)[1].expires == soon


def test_an_error_about_a_key_holds_no_secret(now: datetime, hasher: PasswordHasher) -> None:
    made = admin.create("acme", now, scopes=[], models=[], hasher=hasher)
    for refuse in (lambda: require_scope(made.key, "chat"), lambda: require_model(made.key, "m")):
        with pytest.raises(ApiError) as refused:
            refuse()
        text = "".join(traceback.TracebackException.from_exception(refused.value, capture_locals=True).format())
        assert made.plain.secret not in text
        assert made.key.secret_hash not in text
