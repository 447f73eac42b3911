"""report.html in a real browser: what a reader sees, moves, filters and exports."""

import csv
import os
import time

import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from reports import ROWS, THRESHOLD, make_report

RIGHT_ARROW = "\ue014"


def expected_counts(threshold):
    good = [score for kind, _, score in ROWS if kind == "good"]
    defective = [score for kind, _, score in ROWS if kind != "good"]
    return sum(score > threshold for score in good), sum(score <= threshold for score in defective)


def assert_shows(page, threshold):
    alarms, missed = expected_counts(threshold)
    assert page.texts(".tile-value")[1:3] == [f"{alarms} of 90", f"{missed} of 60"]
    assert f"{alarms} false alarm" in page.texts("#bar-counts")[0]
    called = {
        kind: sum(score > threshold for name, _, score in ROWS if name == kind)
        for kind in ("good", "dent", "scratch")
    }
    table = [[cell.strip() for cell in page.texts(f"#classes tbody tr:nth-child({row}) > *")] for row in (1, 2, 3)]
    assert [(row[0], int(row[2])) for row in table] == list(called.items())
    assert page.texts("#histogram .row-label")[1].endswith(f"30 images, {30 - called['dent']} missed")


def test_first_view(page):
    assert_shows(page, THRESHOLD)
    y_true = [kind != "good" for kind, _, _ in ROWS]
    y_score = [score for _, _, score in ROWS]
    auroc, precision = roc_auc_score(y_true, y_score), average_precision_score(y_true, y_score)
    assert page.texts(".tile-value")[0] == f"{100 * auroc:.1f}\xa0%"
    assert page.texts("#curves figcaption") == [
        f"ROC: area {100 * auroc:.1f}\xa0%",
        f"Precision and recall: area {100 * precision:.1f}\xa0%",
    ]
    alarms, missed = expected_counts(THRESHOLD)
    assert f"{alarms} of 90 good parts are called defective" in page.texts("#tiles")[0]
    assert page.texts("#histogram .row-label")[-1].endswith("5 images scored as new ones, 0 above the threshold")
    assert "small.pth" in page.texts(".facts")[0]
    assert page.run("return [...document.images].every(image => image.complete && image.naturalWidth === 60)")


def test_threshold_by_number_keyboard_and_buttons(page):
    page.choose("#number", 33.3)
    assert_shows(page, 33.3)
    assert page.texts("#copy") == ["Copy -T 33.3"]
    page.press("#slider", RIGHT_ARROW * 5)
    moved = float(page.run("return document.getElementById('number').value"))
    assert 33.3 < moved < 40 and page.texts("#copy") == [f"Copy -T {moved:g}"]
    assert_shows(page, moved)
    exact = next(score for kind, _, score in ROWS if kind == "dent")
    page.choose("#number", repr(exact))  # an image with exactly this score is not above it
    assert_shows(page, exact)
    page.choose("#number", "-3")  # no threshold: nothing changes
    assert_shows(page, exact)
    page.click("#calibrated")
    assert_shows(page, float(page.run("return document.getElementById('number').value")))
    page.click("#reset")
    assert_shows(page, THRESHOLD)
    page.cdp("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.click("#copy")
    assert page.texts("#announcement") == ["Copied -T 80"]


def test_dots_and_line_follow_the_threshold(page):
    def places():
        script = (
            "return [...document.querySelectorAll('.dot')].map(dot => [dot.getAttribute('visibility'),"
            " dot.cx.baseVal.value, dot.cy.baseVal.value])"
            ".concat([document.querySelector('.threshold-line').getAttribute('x1')])"
        )
        return page.run(script)

    roc, _, line = places()
    alarms, missed = expected_counts(THRESHOLD)
    assert roc[1:] == pytest.approx([44 + 220 * alarms / 90, 8 + 220 * missed / 60], abs=0.02)
    page.choose("#number", 20)
    moved, _, moved_line = places()
    assert moved[1] > roc[1] and moved[2] < roc[2] and float(moved_line) < float(line)
    page.choose("#number", 1e6)
    assert places()[1][0] == "hidden"  # nothing is called defective, so there is no precision


def test_pictures_are_coloured_by_the_threshold(page):
    script = """
        return [...document.querySelectorAll('#grid li:first-child canvas')].map(canvas => {
            const copy = document.createElement('canvas');
            [copy.width, copy.height] = [canvas.width, canvas.height];
            const context = copy.getContext('2d', { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
            return pixels.filter((red, index) => index % 4 === 0 && red > 180 && pixels[index + 3] > 60).length;
        });"""
    page.choose("#sort", "high")
    page.run("document.querySelector('#grid li').scrollIntoView()")  # what is not seen is not painted
    page.settle()
    heat, overlay = page.run(script)
    page.choose("#number", 1e6)
    assert heat > 1000 and overlay > 1000 and page.run(script) == [0, 0]


def test_filters_and_order(page):
    def shown():
        return list(zip(page.texts("#grid .name"), page.texts("#grid .chip"), strict=True))

    by_suspicion = sorted(ROWS, key=lambda row: THRESHOLD - row[2] if row[0] != "good" else row[2] - THRESHOLD)
    assert shown() == [(name, kind) for kind, name, _ in by_suspicion[::-1]][:48]
    assert page.texts("#gallery-count") == ["150 images of 150"]
    assert page.texts("main .pager span") == ["Page 1 of 4"] * 2
    page.click("main .pager button:last-child")
    assert shown() == [(name, kind) for kind, name, _ in by_suspicion[::-1]][48:96]
    page.choose("#sort", "high")
    by_score = [(name, kind) for kind, name, _ in sorted(ROWS, key=lambda row: -row[2])]
    assert shown() == by_score[:48]
    page.choose("#filter-class", "1")
    assert shown() == [row for row in by_score if row[1] == "dent"]
    page.choose("#filter-right", "wrong")
    missed = {name for kind, name, score in ROWS if kind == "dent" and score <= THRESHOLD}
    assert {name for name, _ in shown()} == missed and set(page.texts("#grid .badge")) == {"✗ missed defect"}
    page.choose("#number", 1e6)  # the filter follows the threshold
    assert len(shown()) == 30
    page.choose("#filter-called", "defective")
    assert shown() == [] and page.texts("#gallery-count") == ["0 images of 150"]
    for field in ("#filter-called", "#filter-right", "#filter-class"):
        page.choose(field, "")
    page.choose("#filter-name", "SCRATCH2")
    assert {name for name, _ in shown()} == {"scratch2.png", *(f"scratch2{digit}.png" for digit in range(10))}


def test_lightbox(page, report_file):
    page.choose("#sort", "low")
    lowest = sorted(ROWS, key=lambda row: row[2])
    page.click("#grid li:first-child .open")
    assert page.run("return document.getElementById('lightbox').open")
    assert page.texts("#lightbox-title .chip") == [lowest[0][0]]
    page.press("#close", RIGHT_ARROW)
    assert lowest[1][1] in page.texts("#lightbox-title")[0]
    original, written = page.run(
        "return [...document.querySelectorAll('#lightbox-links a')].map(link => link.href)"
    )
    kind, name, _ = lowest[1]
    assert original == (report_file.parent / "set" / "test" / kind / name).as_uri()
    assert written == (report_file.parent / kind / f"{name}.tiff").as_uri()
    page.click("#close")
    assert not page.run("return document.getElementById('lightbox').open")


def read_download(folder):
    file = folder / "mislabelled.csv"
    for _ in range(100):
        if file.is_file() and file.stat().st_size:
            break
        time.sleep(0.05)
    with file.open(newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.reader(opened))
    file.unlink()
    return rows


@pytest.fixture
def downloads(browser, tmp_path):
    browser.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    return tmp_path


def suspects_at(threshold):
    """Good rows clearly above the threshold and defective ones clearly below, most suspicious first."""
    good = [row for row in ROWS if row[0] == "good" and row[2] > 1.2 * threshold]
    defective = [row for row in ROWS if row[0] != "good" and 1.2 * row[2] < threshold]
    return sorted(good, key=lambda row: -row[2]), sorted(defective, key=lambda row: row[2])


def clear_suspects(page):
    """What the page lists of them."""
    by_name = {name: row for row in ROWS for name in [row[1]]}
    while page.run("return [...document.querySelectorAll('#suspects div > button')].some(b => !b.hidden)"):
        page.run("[...document.querySelectorAll('#suspects div > button')].find(b => !b.hidden).click()")
    columns = ("#suspects div:first-child .name", "#suspects div:last-child .name")
    return tuple([by_name[name] for name in page.texts(column)] for column in columns)


def test_suspects_are_those_that_label_and_decision_clearly_disagree_on(page):
    for threshold in (THRESHOLD, 40.0, 1e6):
        page.choose("#number", threshold)
        assert clear_suspects(page) == suspects_at(threshold)
    assert 0 < len(suspects_at(THRESHOLD)[0]) < 10 and len(suspects_at(THRESHOLD)[1]) > 0


def test_no_better_than_chance(browser, tmp_path):
    rows = [
        (kind, f"{kind}{n}.png", score) for kind in ("good", "dent") for n, (_, _, score) in enumerate(ROWS[:60])
    ]
    browser.open(make_report(tmp_path, rows, threshold=20.0))
    assert browser.texts(".warning")[0].startswith("No better than chance on these images")
    assert "--train_steps" in browser.texts(".warning")[0]
    assert browser.texts("#suspects *") == [] and "say nothing about their labels" in browser.texts("main")[0]
    assert coloured(browser) == []
    better = make_report(tmp_path, ROWS)
    browser.open(better)
    assert browser.texts(".warning") == [] and coloured(browser) != []


def coloured(browser):
    """The green and teal colours of a page, light and dark: a hue from 80 to 200 degrees, not grey."""
    found = []
    for theme in ("light", "dark"):
        browser.run("document.documentElement.dataset.theme = arguments[0]", theme)
        found += browser.run("""
            const isGreen = text => {
                const [r, g, b, opacity] = (text.match(/[\\d.]+/g) || [0, 0, 0]).map(Number);
                const [low, high] = [Math.min(r, g, b), Math.max(r, g, b)];
                if (opacity === 0 || high - low < 0.12 * 255 || high === r) return false;
                const hue = high === g ? 120 + 60 * (b - r) / (high - low) : 240 + 60 * (r - g) / (high - low);
                return hue > 80 && hue < 200;
            };
            const kinds = ["color", "backgroundColor", "borderTopColor", "borderLeftColor", "fill", "stroke"];
            return [...document.querySelectorAll("body *")].flatMap(node =>
                kinds.map(kind => getComputedStyle(node)[kind]).filter(isGreen).map(text => node.className + text));
            """)
    return found


def test_one_button_for_one_number(browser, page, tmp_path):
    assert page.run(
        "return !document.getElementById('calibrated').hidden && document.getElementById('reset').disabled"
    )
    browser.open(make_report(tmp_path, ROWS, threshold=71.0, held_out=[20.0, 31.5, 42.0, 55.25, 71.0]))
    shown = browser.texts(".bar-buttons button:not([hidden])")
    assert shown == ["Copy -T 71", "Back to 71"]


def test_ticked_images_are_exported(page, report_file, downloads):
    page.choose("#number", 20)  # many are above it
    best = sorted((row for row in ROWS if row[0] == "good"), key=lambda row: -row[2])
    assert page.texts("#suspects div:first-child .name") == [name for _, name, _ in best[:10]]
    page.click("#suspects button:not(.open)")  # show more
    assert page.texts("#suspects div:first-child .name") == [name for _, name, _ in best[:20]]
    page.click("#reset")
    assert clear_suspects(page) == suspects_at(THRESHOLD)
    best, worst = suspects_at(THRESHOLD)
    assert page.run("return document.getElementById('export').disabled")
    page.click("#suspects div:first-child li:nth-child(2) input")
    page.click("#suspects div:last-child li:first-child input")
    page.choose("#number", 1e6)  # what is ticked stays in the list
    assert page.texts("#suspects div:first-child .name") == [best[1][1]]
    page.click("#reset")
    assert page.texts("#export") == ["Export 2 images as CSV"]
    page.open(report_file)  # ticks survive a reload
    page.click("#export")
    header, *rows = read_download(downloads)
    assert header == ["defect_class", "image_name", "y_score", "path", "threshold", "margin", "rank"]
    expected = sorted(
        [(*best[1], best[1][2] - THRESHOLD, "2"), (*worst[0], worst[0][2] - THRESHOLD, "1")],
        key=lambda row: -abs(row[3]),
    )
    assert [(row[0], row[1], float(row[2]), float(row[5]), row[6]) for row in rows] == expected
    assert rows[0][3] == str(report_file.parent / "set" / "test" / rows[0][0] / rows[0][1])
    page.click("#untick")
    assert page.run("return document.getElementById('export').disabled")
    assert not page.run("return document.querySelectorAll('#suspects input:checked').length")


WELL = [("a", f"{number}.png", 900.0) for number in range(30)]  # so that it is better than chance
HOSTILE = [
    "</script><script>window.hacked = 1</script>.png",
    "\"><img src=x onerror='window.hacked = 1'>.png",
    '=HYPERLINK("http://x","y").png',
    "+1-2.png",
    "@SUM(A1).png",
    "-12",
    "line\nbreak.png",
    os.fsdecode(b"caf\xe9.png"),
    "基板 плата لوحة 👩\u200d🔧.png",
]


def test_hostile_names(browser, tmp_path, downloads):
    rows = [("good", name, 200.0 + index) for index, name in enumerate(HOSTILE)]
    browser.open(
        make_report(tmp_path, [*rows, ("=1+1", "b.png", 9.0), *WELL], title="<script>window.hacked = 1</script>")
    )
    assert browser.run("return window.hacked === undefined")
    assert browser.texts("h1") == ["<script>window.hacked = 1</script>"]
    shown = [*HOSTILE[:6], r"line\nbreak.png", r"caf\xe9.png", HOSTILE[8]]
    assert browser.texts("#suspects div:first-child .name") == shown[::-1]
    for box in range(1, len(HOSTILE) + 1):
        browser.click(f"#suspects div:first-child li:nth-child({box}) input")
    browser.click("#suspects div:last-child input")
    browser.click("#export")
    _, *exported = read_download(downloads)
    guarded = [f"'{name}" if name[0] in "=+@" else name for name in shown]
    assert [row[1] for row in exported] == [*guarded[::-1], "b.png"]
    assert exported[-1][0] == "'=1+1"
    assert browser.console() == []


@pytest.mark.parametrize("kept", ["good", "dent"])
def test_only_good_or_only_defective_images(browser, tmp_path, kept):
    browser.open(make_report(tmp_path, [row for row in ROWS if row[0] == kept]))
    assert browser.texts(".tile-value")[0] == "–"
    assert "need good and defective" in browser.texts("#curves-hint")[0]
    browser.choose("#number", 5)
    assert browser.console() == []
