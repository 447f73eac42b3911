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
        browser.run("document.getElementById('fold').open = true")
        browser.settle()
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


PHONE_ROWS = [
    *[("good", f"board_{number:04d}.png", 20.0 + number) for number in range(90)],
    *[("manipulated_front", f"front_view-{number}.png", 60.0 + 9 * number) for number in range(40)],
    *[("scratch_neck", f"neck_view-{number}.png", 70.0 + 30 * number) for number in range(40)],
]
PHONE_FACTS = [
    ("Model", "EfficientAD small in output/1/trainings/mvtec_ad/screw"),
    ("Localization", "AU-PRO 96.4 % up to a false-positive rate of 30 %, pixel AUROC 99.3 %, over 119 images"),
]


@pytest.fixture
def phone(browser, tmp_path):
    held_out = [18.0, 30.0, 41.0, 44.0, 61.25]
    browser.open(make_report(tmp_path, PHONE_ROWS, held_out=held_out, facts=PHONE_FACTS), 390, 844)
    return browser


def test_a_phone_shows_a_short_page(phone):
    assert phone.run("return document.documentElement.scrollHeight") < 6000
    assert not phone.run("return document.getElementById('fold').open") and phone.texts("#grid li") == []
    phone.click("summary")
    assert 0 < len(phone.texts("#grid li")) <= 12


def test_on_a_phone_nothing_is_cut_and_no_word_breaks(phone, tmp_path):
    phone.click("summary")
    cut = phone.run("""
        const hides = node => ["hidden", "auto", "scroll"].includes(getComputedStyle(node).overflowX);
        const isCut = node => node.scrollWidth > node.clientWidth + 1 && hides(node);
        const isCutSelect = node => {
            const free = node.cloneNode(true);
            free.style.width = "auto";
            free.style.maxWidth = "none";
            node.after(free);
            const needs = free.offsetWidth;
            free.remove();
            return needs > node.offsetWidth + 1;
        };
        return [...document.querySelectorAll("body *")]
            .filter(node => !node.closest(".visually-hidden, .skip, dialog, [hidden]"))
            .filter(node => node.tagName === "SELECT" ? isCutSelect(node) : isCut(node))
            .map(node => node.outerHTML.slice(0, 90));""")
    assert cut == []
    assert broken_words(phone) == []
    assert phone.run("return document.querySelectorAll('wbr').length > 10")
    chance = [(kind, f"{kind}{n}.png", 5.0 + n) for kind in ("good", "dent") for n in range(60)]
    phone.open(make_report(tmp_path, chance, facts=PHONE_FACTS), 390, 844)
    for width in range(340, 420, 4):
        phone.run("document.body.style.width = `${arguments[0]}px`", width)
        assert broken_words(phone) == []


def broken_words(browser):
    """Words and numbers of a page that go on in a second line."""
    return browser.run("""
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        const parts = [...document.querySelectorAll("wbr")].map(mark =>
            [mark.previousSibling.textContent, mark.nextSibling.textContent]);
        const isNumber = ([before, after]) => /[0-9][.]$/.test(before) && /^[0-9]/.test(after);
        const broken = parts.filter(isNumber).map(String);
        for (let node = walker.nextNode(); node; node = walker.nextNode()) {
            if (node.parentElement.closest("script, style, .visually-hidden, dialog, svg, select")) continue;
            for (const word of node.textContent.matchAll(/[\\p{L}\\p{N}.,%]+/gu)) {
                const range = document.createRange();
                range.setStart(node, word.index);
                range.setEnd(node, word.index + word[0].length);
                const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
                if (lines.size > 1) broken.push(word[0]);
            }
        }
        return broken;""")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("largest", [2.5, 300.0, 90_000.0])
def test_the_score_axis_is_readable(browser, tmp_path, width, largest):
    rows = [
        (kind, f"{n}.png", largest * (n + 1) / 40 / (1 + 9 * (kind == "good")))
        for kind in ("good", "dent")
        for n in range(40)
    ]
    browser.open(make_report(tmp_path, rows, threshold=largest / 10), width, 844)
    boxes = browser.run("""
        return [...document.querySelectorAll(".axis text")].slice(0, -1).map(text => {
            const box = text.getBoundingClientRect();
            const value = Number(text.textContent.replaceAll(",", ""));
            return [box.left, box.right, parseFloat(getComputedStyle(text).fontSize), value];
        });""")
    assert len(boxes) >= 3 and all(size >= 13 for *_, size, _ in boxes)
    assert all(left[1] + 8 <= right[0] for left, right in zip(boxes, boxes[1:], strict=False))
    digits = {f"{value:e}"[0] for *_, value in boxes if value}
    assert digits <= {"1", "2", "5"} and "1" in digits


def heat_colours(browser):
    """The brightest colour of the heat map and the outlined pixels of the overlay, of the gallery's first image."""
    browser.run("document.querySelector('#grid li').scrollIntoView()")
    browser.settle()
    return browser.run("""
        const [heat, overlay] = [...document.querySelectorAll("#grid li:first-child canvas")].map(canvas => {
            const copy = document.createElement("canvas");
            [copy.width, copy.height] = [canvas.width, canvas.height];
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            return context.getImageData(0, 0, copy.width, copy.height).data;
        });
        let brightest = [0, 0, 0];
        for (let at = 0; at < heat.length; at += 4) {
            const colour = [...heat.slice(at, at + 3)];
            if (colour[0] + colour[1] + colour[2] > brightest[0] + brightest[1] + brightest[2]) brightest = colour;
        }
        let blue = 0;
        for (let at = 0; at < overlay.length; at += 4) {
            blue += overlay[at + 2] > 200 && overlay[at] < 120 && overlay[at + 3] > 200;
        }
        const canvas = document.querySelector("#grid li:first-child canvas");
        return [brightest, blue, canvas.width / canvas.clientWidth];""")


def test_heat_maps_show_faint_differences_and_do_not_saturate(page):
    page.choose("#sort", "high")
    peak = page.run(
        "return Math.max(...JSON.parse(document.getElementById('data').textContent).images.map(i => i[10]))"
    )
    seen = []
    for times in (0.1, 0.3, 0.8, 1.5, 3, 6, 12, 25):
        page.choose("#number", peak / times)
        seen.append(heat_colours(page)[0])
    steps = [max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(seen, seen[1:], strict=False)]
    assert min(steps) > 25, seen
    assert max(seen[0]) > 60  # a tenth of the threshold is not black
    assert "stretched" in page.texts("#legend")[0] and "32 times" in page.texts("#legend")[0]


def test_outlines_are_as_thick_as_two_pixels(page):
    page.choose("#filter-class", "1")
    page.choose("#number", 1e6)
    _, blue, scale = heat_colours(page)
    outline = 2 * (200 / 20 * 10 + 133 / 10)  # of the mask: ten cells of one row of 20 x 10
    assert blue > 1.7 * scale * outline


def test_theme_button_and_labels(page):
    assert page.run("return document.documentElement.dataset.theme") == "light"
    page.click("#theme")
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    nameless = page.run("""
        return [...document.querySelectorAll("input, select, button, canvas, a, svg[role]")]
            .filter(node => !node.labels?.length && !node.getAttribute("aria-label") && !node.textContent.trim())
            .map(node => node.outerHTML.slice(0, 80));""")
    assert nameless == []
