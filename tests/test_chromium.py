"""The browser that other tests take: it answers, says what is wrong, and ends."""

from __future__ import annotations

import os

import pytest

from tests.support import chromium


@pytest.mark.skipif(bool(chromium.why_not()), reason=chromium.why_not())
def test_the_browser() -> None:
    with chromium.started() as browser:
        process_id = browser.process_id
        assert browser.run("return await Promise.resolve(known + 1)", known=3) == 4
        with pytest.raises(chromium.PageError, match="no such thing"):
            browser.run("throw new Error('no such thing')")
        with pytest.raises(chromium.PageError, match="ERR_FILE_NOT_FOUND"):
            browser.go("file:///nothing/there")
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)
