"""Mirrors of the released models, on the internet."""

from __future__ import annotations

import pytest
import requests

from mae_ast.hub.registry import RELEASED

pytestmark = pytest.mark.network


@pytest.mark.parametrize("name", RELEASED)
def test_every_mirror_offers_a_checkpoint_of_plausible_size(name):
    for url in RELEASED[name].urls:
        answer = requests.head(url, timeout=30, allow_redirects=True)
        assert answer.status_code == 200, url
        assert int(answer.headers["Content-Length"]) > 100e6, url
