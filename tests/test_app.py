"""The page, in a real browser, headless. Skipped where Gradio, Selenium or the browser is missing."""

import shutil
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import random_image

from styleid import save_image
from styleid.app import Settings, Workshop, build

gradio = pytest.importorskip("gradio", reason="the page needs Gradio: pip install 'styleid[app]'")
selenium = pytest.importorskip("selenium", reason="the browser is driven by Selenium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="no chromedriver: apt install chromium-driver"),
]
LAYERS = (6, 7)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number, name in enumerate(("content", "style")):
        save_image(folder / f"{name}.png", random_image(number, 64, 64))
    return folder


@pytest.fixture(scope="module")
def workshop(model):
    return Workshop(["tiny"], load=lambda source: model)


@pytest.fixture(scope="module")
def address(workshop):
    page = build(workshop)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, max_file_size="1mb")
    yield address
    page.close()


@pytest.fixture
def browser(address):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1400"):
        options.add_argument(argument)
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=service) as driver:
        driver.get(address)
        yield driver


def wait(browser, what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"nothing after {seconds} s; the page says: {browser.find_element('tag name', 'body').text}")


def element(browser, selector):
    return wait(browser, lambda: next(iter(browser.find_elements("css selector", selector)), None))


def upload(browser, images):
    for name in ("content", "style"):
        element(browser, f"#{name} input[type=file]").send_keys(str(images / f"{name}.png"))
        element(browser, f"#{name} img")


def test_a_transfer(browser, images, workshop):
    upload(browser, images)
    element(browser, "#run").click()
    source = element(browser, "#result img").get_attribute("src")
    link = element(browser, "#download a[href]")
    assert source.startswith("http") and link.get_attribute("href").endswith(".png")
    assert "gamma" in wait(
        browser, lambda: "gamma" in element(browser, "#status").text and element(browser, "#status").text
    )
    assert len(workshop._inversions) == 2


def test_an_error_is_shown(browser):
    element(browser, "#run").click()
    wait(browser, lambda: "Choose a content image first" in browser.find_element("tag name", "body").text)


def test_cancel(browser, images, workshop, monkeypatch):
    ended = []

    def endless(content, style, settings, report, show=None):
        try:
            while True:
                report("sampling", 0.5)
                time.sleep(0.05)
        finally:
            ended.append(True)

    monkeypatch.setattr(workshop, "transfer", endless)
    upload(browser, images)
    element(browser, "#run").click()
    wait(browser, lambda: "sampling" in element(browser, "#status").text)
    element(browser, "#cancel").click()
    wait(browser, lambda: ended)


def test_no_file_of_the_host_is_readable(address, tmp_path):
    secret = tmp_path / "secret.png"
    save_image(secret, random_image(0, 8, 8))
    for path in ("/etc/passwd", str(secret), "../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")


def test_a_changed_setting_costs_one_sampling(workshop, images):
    """Inversions are kept; a layer that was not kept is what a new one is made for."""
    reports = []

    def report(what, fraction):
        reports.append(what)

    content, style = (str(images / f"{name}.png") for name in ("content", "style"))
    settings = Settings("tiny", 2, "corrected", 0.5, 1.5, LAYERS, True)
    first = workshop.transfer(content, style, settings, report)
    reports.clear()
    second = workshop.transfer(content, style, Settings("tiny", 2, "corrected", 0.1, 1.5, LAYERS[:1], True), report)
    assert set(reports) == {"loading", "sampling"}
    assert first.shape == second.shape and not np.array_equal(first, second)
    workshop.transfer(content, style, Settings("tiny", 2, "corrected", 0.5, 1.5, (5, *LAYERS), True), report)
    assert {"content", "style"} <= set(reports)


def test_other_models_are_refused(workshop):
    with pytest.raises(ValueError, match="model: expected one of"):
        workshop.model("/etc")
