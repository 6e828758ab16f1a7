"""The page: what may run in it, and, in a browser, that it does what it is for."""

import re
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
import torch

from lissom.server import FolderService, LanguageService, TensorService, create_app
from tests.server.conftest import EVIDENCE, SIGNATURE, Scale

PATIENCE = 60  # seconds until a test gives up; no result depends on it
DROP = {"value": 0.001, "low": -0.01, "high": 0.004, "n": 900}
POINTS = [{"name": str(n), "nbytes": 1e6 * n, "drop": 0.1 / n, "ms": 1.0} for n in (1, 2, 4)]
PROVEN = {
    "certificate": {**EVIDENCE, "drop": DROP, "confidence": 0.95},
    "machine": {"cpu": "a processor"},
    "frontier": POINTS,
}


def test_only_its_own_code_runs_in_it_and_it_asks_nobody_else(start: Any) -> None:
    service = TensorService(module=Scale(), name="scale", signature=SIGNATURE)
    with start(create_app([service], api_key="secret")) as url:
        answer = httpx.get(url)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = answer.headers["content-security-policy"]
        for tag in ("style", "script"):
            (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, flags=re.S)
            assert b64encode(sha256(text.encode()).digest()).decode() in policy
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert not re.findall(r"""src=|href="(?!data:,")|@import|https?://(?!www\.w3\.org)""", answer.text)
        assert "innerHTML" not in answer.text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window, at the size of a phone at first."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    places = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium, driver = next(filter(None, places), None), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=390,844"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(scope="module")
def page(browser: Any, start: Any, model: Any, tokenizer: Any, text_encoder: Any) -> Iterator[Any]:
    """The page of a server whose key it has, with two language models, an encoder and a module."""
    services = [
        LanguageService(model=model, tokenizer=tokenizer, name="small", evidence=PROVEN),
        LanguageService(model=model, tokenizer=tokenizer, name="original"),
        FolderService(folder=text_encoder(), name="encoder"),
        TensorService(module=Scale(), name="scale", signature=SIGNATURE),
    ]
    with start(create_app(services, api_key="secret")) as url:
        browser.get(url)
        browser.execute_script("sessionStorage.setItem('lissom-key', 'secret')")
        browser.get(url)
        wait(browser, "return document.querySelectorAll('nav button').length")
        yield browser


def wait(browser: Any, script: str) -> Any:
    """What a script gives, as soon as that is something."""
    for _ in range(PATIENCE * 10):
        if found := browser.execute_script(script):
            return found
        time.sleep(0.1)
    pytest.fail(f"{script}: {browser.find_element('tag name', 'main').text}")


def choose(browser: Any, name: str) -> None:
    for tab in browser.find_elements("css selector", "nav button"):
        if tab.text == name:
            tab.click()
            return
    pytest.fail(f"no tab {name}")


def test_a_stranger_is_asked_for_a_key(page: Any) -> None:
    page.execute_script("sessionStorage.clear()")
    page.refresh()
    wait(page, "return document.getElementById('state').textContent.includes('API key')")
    assert page.find_element("id", "door").is_displayed()
    page.find_element("id", "key").send_keys("secret\n")
    assert wait(page, "return document.querySelectorAll('nav button').length") == 4


def test_two_models_answer_side_by_side_by_the_keyboard_alone(page: Any, model: Any, tokenizer: Any) -> None:
    choose(page, "small")
    page.execute_script("document.getElementById('tokens').value = 12")
    page.find_element("id", "prompt").send_keys("Once upon a time")
    from selenium.webdriver import Keys

    page.find_element("id", "prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    wait(page, "return [...document.querySelectorAll('.side small')].every((one) => one.textContent)")
    sides = page.find_elements("css selector", ".side")
    said = [side.find_elements("css selector", ".turns p")[1].get_property("textContent") for side in sides]
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert said == [tokenizer.decode(expected)] * 2
    assert [side.find_element("tag name", "h3").text.split()[0] for side in sides] == ["small", "original"]
    assert "tokens/s" in sides[0].text
    width = page.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]  # nothing leaves the screen of a phone


def test_what_is_proven_is_said_in_words(page: Any) -> None:
    choose(page, "small")
    text = wait(page, "return document.querySelector('#evidence .PASS')?.parentElement.textContent")
    assert text.startswith("PASS  At 95.00 % confidence the drop is at most 0.40 %; 1.00 % were allowed.")
    assert len(page.find_elements("css selector", "#evidence circle")) == 3
    assert "a processor" in page.find_element("id", "evidence").text
    wait(page, "return document.getElementById('now').textContent.includes('running')")
    choose(page, "original")
    wait(page, "return document.getElementById('evidence').textContent.includes('Nothing is claimed')")


def test_texts_are_compared(page: Any) -> None:
    choose(page, "encoder")
    page.find_element("id", "texts").send_keys("Once upon a time\nthere was a dog\nOnce upon a time")
    page.find_element("css selector", "#liken button").click()
    wait(page, "return document.querySelectorAll('#likeness li').length == 2")
    first, second = (line.text.split()[0] for line in page.find_elements("css selector", "#likeness li"))
    assert float(second) == 1.0 > float(first)


def test_tensors_go_in_and_out(page: Any) -> None:
    choose(page, "scale")
    wait(page, "return document.getElementById('input-x')")
    for name, values in (("x", "[[1, 2], [3, 4]]"), ("y", "[1, 2, 3]")):
        field = page.find_element("id", f"input-{name}")
        field.clear()
        field.send_keys(values)
    page.find_element("css selector", "#infer button").click()
    assert wait(page, "return document.querySelector('#outputs pre')?.textContent") == "[2,4,6,8]"
    field.clear()
    field.send_keys("[1, 2]")
    page.find_element("css selector", "#infer button").click()
    assert "takes [3]" in wait(page, "return document.querySelector('#outputs .trouble')?.textContent")


@pytest.mark.parametrize(("scheme", "paper"), [("light", "rgb(253, 253, 251)"), ("dark", "rgb(22, 24, 27)")])
def test_it_is_light_by_day_and_dark_by_night(page: Any, scheme: str, paper: str) -> None:
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    assert page.execute_script("return getComputedStyle(document.body).backgroundColor") == paper


def test_nothing_went_wrong_on_the_way(page: Any) -> None:
    """What the browser complains of is what was refused on purpose."""
    told = [line["message"] for line in page.get_log("browser")]
    assert all("401" in line or "400" in line for line in told), told
