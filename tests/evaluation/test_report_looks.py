"""report.html in a real browser: that it fits any window and can be read, by eye and by a screen reader."""

import pytest

from reports import make_report


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_no_horizontal_scroll_and_enough_contrast(browser, tmp_path, report_file, width, dark):
    long = [("good", "w" * 180 + ".png", 100.0), ("d" * 120, "x.png", 50.0)]
    for file in (report_file, make_report(tmp_path, long, title="t" * 200, facts=[("Model", "/a" * 200)])):
        browser.open(file, width, 844, dark)
        assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        browser.click("#grid .open")
        assert browser.run(
            "const box = document.getElementById('lightbox'); return box.scrollWidth <= box.clientWidth"
        )
        assert poor_contrasts(browser) == []
    assert browser.run("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert browser.console() == []
    browser.run("document.documentElement.style.setProperty('--muted', '#808080')")
    assert poor_contrasts(browser) != []


def poor_contrasts(browser):
    """Texts of the page whose contrast with what is behind them is below 4.5, the WCAG's AA."""
    return browser.run("""
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const poor = [];
        const texts = "p, span, td, th, dt, dd, h1, h2, h3, bdi, button, a, text, pre";
        for (const node of document.querySelectorAll(texts)) {
            if (!node.textContent.trim() || node.closest(":disabled, .visually-hidden, .skip, [hidden]")) continue;
            let ground = node;
            const isClear = node => (numbers(getComputedStyle(node).backgroundColor)[3] ?? 1) === 0;
            while (ground && isClear(ground)) ground = ground.parentElement;
            const style = getComputedStyle(node);
            const front = light(numbers(node.tagName === "text" ? style.fill : style.color));
            const back = light(numbers(getComputedStyle(ground || document.body).backgroundColor));
            const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
            if (contrast < 4.5) poor.push(`${node.tagName}.${node.className} ${contrast.toFixed(2)}`);
        }
        return [...new Set(poor)];""")


def test_theme_button_and_labels(page):
    assert page.run("return document.documentElement.dataset.theme") == "light"
    page.click("#theme")
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    nameless = page.run("""
        return [...document.querySelectorAll("input, select, button, canvas, a, svg[role]")]
            .filter(node => !node.labels?.length && !node.getAttribute("aria-label") && !node.textContent.trim())
            .map(node => node.outerHTML.slice(0, 80));""")
    assert nameless == []
