// The page: one threshold, and everything that follows it.

const isNarrow = matchMedia("(max-width: 560px)").matches;
const PAGE = isNarrow ? 12 : 48; // images of the gallery at a time
const SUSPECTS = isNarrow ? 5 : 10; // more of each kind with a click
const CLEARLY = 1.2; // times the threshold, or that part of it: scores at which label and decision clearly disagree
const LARGE_PICTURE = 900;

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const classes = data.classes.map(([name, auroc, folder], number) => ({ name, auroc, folder, good: number === data.good, scores: [] }));
const images = data.images.map(([number, name, score, file, mapFile, width, height, thumbnail, map, mask, peak], index) => {
  classes[number].scores.push(score);
  return { index, number, name, score, file, mapFile, width, height, thumbnail, map, mask, peak, good: classes[number].good, kind: classes[number].name, folder: classes[number].folder };
});
for (const each of classes) each.scores.sort((a, b) => a - b);
const goodScores = images.filter((image) => image.good).map((image) => image.score).sort((a, b) => a - b);
const badScores = images.filter((image) => !image.good).map((image) => image.score).sort((a, b) => a - b);
const scale = scoreScale([...goodScores, ...badScores, ...data.calibration, data.threshold]);

let threshold = data.threshold;
const isCalled = (image) => image.score > threshold;
const isWrong = (image) => isCalled(image) === image.good;
const suspicion = (image) => (image.good ? image.score - threshold : threshold - image.score);
const margin = (image) => image.score - threshold;
const short = (value) => (Math.abs(value) >= 1000 ? Math.round(value) : Number(value.toPrecision(4))).toLocaleString("en", { maximumFractionDigits: 3 });
const signed = (value) => `${value < 0 ? "\u2212" : "+"}${short(Math.abs(value))}`;
const counted = (count, singular, plural = `${singular}s`) => `${count.toLocaleString("en")} ${count === 1 ? singular : plural}`;
const fullName = (image) => (image.kind ? `${image.kind}/${image.name}` : image.name); // without labels there is no kind
const chips = (image) => (image.kind ? [breakable("bdi", image.kind, { class: "chip" })] : []);
const announce = (text) => { byId("announcement").textContent = text; };

function verdict(image) {
  if (!data.labelled) return isCalled(image) ? { sign: "!", text: "called defective", style: "wrong" } : { sign: "\u2713", text: "called good", style: "right" };
  if (!isWrong(image)) return { sign: "\u2713", text: image.good ? "called good, right" : "called defective, right", style: "right" };
  return image.good ? { sign: "\u2717", text: "false alarm", style: "wrong" } : { sign: "\u2717", text: "missed defect", style: "wrong" };
}

function badge(image) {
  const { sign, text, style } = verdict(image);
  return element("span", { class: `badge ${style}` }, element("span", { "aria-hidden": "true" }, sign), ` ${text}`);
}

// ---- the threshold and its controls

function setThreshold(value, source) {
  if (!Number.isFinite(value) || value < 0) return;
  threshold = value;
  if (source !== byId("slider")) byId("slider").value = Math.round(1000 * scale.at(value));
  if (source !== byId("number")) byId("number").value = String(value);
  byId("slider").setAttribute("aria-valuetext", short(value));
  if (!setThreshold.pending) {
    setThreshold.pending = true;
    requestAnimationFrame(() => {
      setThreshold.pending = false;
      update();
    });
  }
}

// Of a place on the scale, with four digits: short enough to copy.
const setShare = (share, source) => setThreshold(Number(scale.value(share).toPrecision(4)), source);

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const box = element("textarea", { readonly: "" }, text); // where the clipboard is not given to files
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    button.focus();
  }
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
  announce(`Copied ${text}`);
}

function wireThreshold() {
  const slider = byId("slider");
  slider.addEventListener("input", () => setShare(slider.value / 1000, slider));
  byId("number").addEventListener("input", (event) => setThreshold(event.target.value === "" ? NaN : Number(event.target.value), event.target));
  byId("number").addEventListener("change", (event) => { event.target.value = String(threshold); });
  byId("copy").addEventListener("click", (event) => copy(`-T ${threshold}`, event.currentTarget));
  byId("reset").addEventListener("click", () => setThreshold(data.threshold));
  byId("reset").textContent = `Back to ${short(data.threshold)}`;
  byId("reset").title = "The threshold of this run";
  if (data.calibrated_threshold !== null && short(data.calibrated_threshold) !== short(data.threshold)) {
    byId("calibrated").hidden = false;
    byId("calibrated").textContent = `Calibrated ${short(data.calibrated_threshold)}`;
    byId("calibrated").title = "The threshold calibrated on good images of the training";
    byId("calibrated").addEventListener("click", () => setThreshold(data.calibrated_threshold));
  }
  byId("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", () => setTheme(system.matches ? "dark" : "light"));
  setTheme(system.matches ? "dark" : "light");
  for (const button of document.querySelectorAll(".copy-command")) {
    button.addEventListener("click", () => copy(button.previousElementSibling.textContent, button));
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "\u2600 Light" : "\u263e Dark";
  byId("theme").setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
}

// ---- summary, table and charts

function tile(title, value, sentence, style = "") {
  return element("div", { class: `tile ${style}` }, element("p", { class: "tile-title" }, title), element("p", { class: "tile-value" }, value), element("p", {}, sentence));
}

// Without labels, of which there is nothing right or wrong.
function showCounts(called) {
  const highest = images.reduce((best, image) => (image.score > best.score ? image : best));
  byId("tiles").replaceChildren(
    tile("Called defective", `${called} of ${images.length}`, `${percent(called / images.length)} of the images score above the threshold.`, called ? "alarm" : ""),
    tile("Called good", `${images.length - called} of ${images.length}`, `${percent(1 - called / images.length)} of the images do not.`),
    tile("Highest score", short(highest.score), `${percent(highest.score / threshold)} of the threshold: ${highest.name}`));
  byId("bar-counts").replaceChildren(element("span", {}, `${called} called defective`));
}

function showSummary(alarms, missed) {
  const right = images.length - alarms - missed;
  const tiles = [
    tile("Separation (AUROC)", data.auroc === null ? "\u2013" : percent(data.auroc), data.auroc === null
      ? `Undefined: there are no ${goodScores.length ? "defective" : "good"} images.`
      : `A defective part scores higher than a good one in ${(100 * data.auroc).toFixed(1)} of 100 pairs. 50 is chance, 100 perfect.`),
    tile("False alarms", `${alarms} of ${goodScores.length}`, goodScores.length
      ? `${alarms} of ${counted(goodScores.length, "good part")} ${alarms === 1 ? "is" : "are"} called defective (${percent(alarms / goodScores.length)}).`
      : "There are no good parts in this test.", alarms ? "alarm" : ""),
    tile("Missed defects", `${missed} of ${badScores.length}`, badScores.length
      ? `${missed} of ${counted(badScores.length, "defective part")} ${missed === 1 ? "is" : "are"} called good (${percent(missed / badScores.length)}).`
      : "There are no defective parts in this test.", missed ? "alarm" : ""),
    tile("Right decisions", percent(right / images.length), `${right} of ${counted(images.length, "image")} are called what their label says.`),
  ];
  byId("tiles").replaceChildren(...tiles);
  byId("bar-counts").replaceChildren(
    element("span", {}, counted(alarms, "false alarm")), element("span", {}, counted(missed, "missed defect")));
}

function showTable(alarms, missed) {
  const heads = ["Class", "Images", "Called defective", "Called good", "Right", "AUROC"];
  const line = (name, count, called, right, auroc) => element("tr", {}, element("th", { scope: "row" }, breakable("bdi", name)),
    ...[count, called, count - called, percent(right / count), auroc === null ? "\u2013" : percent(auroc)].map((cell) => element("td", {}, String(cell))));
  const rows = classes.map((each) => {
    const called = countAbove(each.scores, threshold);
    return line(each.name, each.scores.length, called, each.good ? each.scores.length - called : called, each.auroc);
  });
  const found = badScores.length - missed;
  const total = line("All", images.length, alarms + found, images.length - alarms - missed, data.auroc);
  byId("classes").replaceChildren(
    element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {}, ...rows), element("tfoot", {}, total));
  const precision = found / (found + alarms);
  const recall = found / badScores.length;
  byId("ratios").textContent = `Precision ${percent(precision)}: the share of the parts called defective that are. ` +
    `Recall ${percent(recall)}: the share of the defective parts that are found. F1 ${percent((2 * found) / (2 * found + alarms + missed))}.`;
}

let moveLine = () => {};
let moveDots = () => {};

function buildHistogram() {
  const rows = classes.map((each) => ({
    name: data.labelled ? each.name : "scored",
    scores: each.scores,
    wrongAbove: data.labelled ? each.good : null,
    label: (called) => !data.labelled
      ? `\u2013 ${counted(each.scores.length, "image")}, ${called} above the threshold`
      : each.good
      ? `\u2013 ${counted(each.scores.length, "image")}, ${counted(called, "false alarm")}`
      : `\u2013 ${counted(each.scores.length, "image")}, ${each.scores.length - called} missed`,
  }));
  if (data.calibration.length) {
    rows.push({
      name: "good, of the training",
      scores: [...data.calibration].sort((a, b) => a - b),
      wrongAbove: null,
      label: (called) => `\u2013 ${counted(data.calibration.length, "image")} scored as new ones, ${called} above the threshold`,
    });
  }
  moveLine = drawHistogram(byId("histogram"), rows, scale, setShare);
  moveLine(threshold);
}

function buildCurves() {
  if (!goodScores.length || !badScores.length) {
    byId("curves-hint").textContent = "These curves need good and defective images.";
    return;
  }
  const points = curvePoints(goodScores, badScores);
  const moveRoc = drawCurve(byId("curves"), `ROC: area ${percent(data.auroc)}`, "false alarms, % of good", "found, % of defective",
    [[0, 0], ...points.map((point) => [point.falseRate, point.found])], true);
  const steps = points.flatMap((point, index) => (index ? [[points[index - 1].found, point.precision]] : [[0, point.precision]]).concat([[point.found, point.precision]]));
  const movePrecision = drawCurve(byId("curves"), `Precision and recall: area ${percent(averagePrecision(points))}`,
    "recall: found, % of defective", "precision, % of called", steps, false);
  moveDots = (alarms, found) => {
    moveRoc([alarms / goodScores.length, found / badScores.length]);
    movePrecision(alarms + found ? [found / badScores.length, found / (alarms + found)] : null);
  };
}

// ---- the probably mislabelled

const ticked = new Set();
const suspects = [
  { title: "Labelled good, but clearly above the threshold", ranked: images.filter((image) => image.good).sort((a, b) => b.score - a.score) },
  { title: "Labelled defective, but clearly below the threshold", ranked: images.filter((image) => !image.good).sort((a, b) => a.score - b.score) },
];
for (const group of suspects) {
  group.shown = SUSPECTS;
  group.rows = new Map(); // by image
  group.ranked.forEach((image, index) => { image.rank = index + 1; });
}
const isSuspect = (image) => ticked.has(image.index) || (image.good ? image.score > CLEARLY * threshold : CLEARLY * image.score < threshold);
const storageKey = `ticked-${data.key}`;

function restoreTicks() {
  try { // a browser may keep nothing for files
    for (const index of JSON.parse(localStorage.getItem(storageKey) || "[]")) if (images[index]) ticked.add(index);
  } catch { /* then the ticks last as long as the page */ }
}

function tick(index, on) {
  if (on) ticked.add(index);
  else ticked.delete(index);
  try {
    localStorage.setItem(storageKey, JSON.stringify([...ticked]));
  } catch { /* as above */ }
  showTicks();
}

function showTicks() {
  byId("export").textContent = ticked.size ? `Export ${counted(ticked.size, "image")} as CSV` : "Export as CSV";
  byId("export").disabled = byId("untick").disabled = !ticked.size;
}

function buildSuspects() {
  byId("suspects").replaceChildren(...suspects.map((group) => {
    group.rows.clear();
    group.list = element("ol", { class: "suspects" });
    group.none = element("p", { class: "hint" }, "There are none at this threshold.");
    group.more = element("button", { type: "button" }, `Show ${SUSPECTS} more`);
    group.more.addEventListener("click", () => {
      group.shown += SUSPECTS;
      showSuspects();
    });
    return element("div", {}, element("h3", {}, group.title), group.list, group.none, group.more);
  }));
}

function showSuspects() {
  if (data.is_chance || !data.labelled) return;
  for (const group of suspects) {
    group.images = group.ranked.filter(isSuspect);
    const rows = group.images.slice(0, group.shown).map((image) => {
      if (!group.rows.has(image)) group.rows.set(image, suspectRow(image, group));
      return group.rows.get(image);
    });
    if (rows.length !== group.list.children.length || rows.some((row, index) => row.item !== group.list.children[index])) {
      group.list.replaceChildren(...rows.map((row) => row.item));
    }
    for (const row of rows) row.refresh();
    group.none.hidden = rows.length > 0;
    group.more.hidden = rows.length === group.images.length;
  }
}

function suspectRow(image, group) {
  const box = element("input", { type: "checkbox", "aria-label": `Label of ${image.kind}/${image.name} is wrong`, "data-index": String(image.index) });
  box.checked = ticked.has(image.index);
  box.addEventListener("change", () => tick(image.index, box.checked));
  const picture = pictureFrame(image, "overlay", data, 128);
  const open = element("button", { type: "button", class: "open", "aria-label": `Enlarge ${image.kind}/${image.name}` }, picture.frame);
  open.addEventListener("click", () => openLightbox(group.images, image));
  const status = element("span", { class: "status" });
  const item = element("li", {}, box, element("span", { class: "rank" }, `${image.rank}.`), open,
    element("span", { class: "what" }, breakable("bdi", image.name, { class: "name" }), breakable("bdi", image.kind, { class: "chip" }), status));
  const refresh = () => {
    status.replaceChildren(`score ${short(image.score)}, margin ${signed(margin(image))} `, badge(image));
    paintWhenSeen(item, () => picture.repaint(threshold));
  };
  refresh();
  return { item, refresh };
}

// A cell that a spreadsheet would run as a formula gets an apostrophe in front; a plain number is no formula.
function csvCell(value) {
  const text = String(value);
  const safe = /^'*[=+\-@\t\r\n]/.test(text) && !/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?$/i.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function exportTicked() {
  const chosen = images.filter((image) => ticked.has(image.index)).sort((a, b) => suspicion(b) - suspicion(a));
  const rows = [["defect_class", "image_name", "y_score", "path", "threshold", "margin", "rank"],
    ...chosen.map((image) => [image.kind, image.name, image.score, `${data.test_folder}/${image.folder}/${image.name}`, threshold, margin(image), image.rank])];
  const text = rows.map((row) => `${row.map(csvCell).join(",")}\r\n`).join("");
  const link = element("a", { download: "mislabelled.csv", href: URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  announce(`Exported ${counted(chosen.length, "image")}`);
}

// ---- the gallery

let listed = []; // the images that the filters let through, in order
let page = 0;
let cards = [];
const collator = new Intl.Collator(undefined, { numeric: true });

function chosenImages() {
  const [kind, called, right] = ["filter-class", "filter-called", "filter-right"].map((id) => byId(id).value);
  const wanted = byId("filter-name").value.trim().toLowerCase();
  const kept = images.filter((image) =>
    (kind === "" || image.number === Number(kind)) &&
    (called === "" || isCalled(image) === (called === "defective")) &&
    (right === "" || isWrong(image) === (right === "wrong")) &&
    (wanted === "" || image.name.toLowerCase().includes(wanted)));
  const orders = {
    suspicion: (a, b) => suspicion(b) - suspicion(a),
    high: (a, b) => b.score - a.score,
    low: (a, b) => a.score - b.score,
    name: (a, b) => collator.compare(a.kind, b.kind) || collator.compare(a.name, b.name),
  };
  return kept.sort(orders[byId("sort").value]);
}

function showGallery() {
  if (!byId("fold").open) return;
  listed = chosenImages();
  const pages = Math.max(1, Math.ceil(listed.length / PAGE));
  page = Math.min(page, pages - 1);
  byId("gallery-count").textContent = `${counted(listed.length, "image")} of ${images.length.toLocaleString("en")}`;
  for (const [previous, position, next] of pagers) {
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
    position.textContent = `Page ${page + 1} of ${pages}`;
  }
  const kinds = byId("view").value === "all" ? ["image", "heat", "overlay"] : [byId("view").value];
  const before = cards;
  const reusable = new Map(cards.filter((card) => card.kinds === String(kinds)).map((card) => [card.image, card]));
  cards = listed.slice(page * PAGE, (page + 1) * PAGE).map((image) => reusable.get(image) || buildCard(image, kinds));
  if (cards.length !== before.length || cards.some((card, index) => card !== before[index])) {
    byId("grid").replaceChildren(...cards.map((card) => card.item));
    byId("grid").className = `grid ${kinds.length > 1 ? "wide" : "narrow"}`;
  }
  for (const card of cards) card.refresh();
}

function buildCard(image, kinds) {
  const pictures = kinds.map((kind) => pictureFrame(image, kind, data, kinds.length > 1 ? 200 : FINEST_PICTURE));
  const open = element("button", { type: "button", class: "open", "aria-label": `Enlarge ${fullName(image)}` }, ...pictures.map((picture) => picture.frame));
  open.addEventListener("click", () => openLightbox(listed, image));
  const status = element("p", { class: "status" });
  const item = element("li", { class: "card-image" }, open,
    element("p", { class: "caption" }, breakable("bdi", image.name, { class: "name", title: image.name }), ...chips(image)), status);
  const refresh = () => {
    status.replaceChildren(element("span", {}, `score ${short(image.score)}`), badge(image));
    paintWhenSeen(item, () => pictures.forEach((picture) => picture.repaint(threshold)));
  };
  return { image, kinds: String(kinds), item, refresh };
}

const pagers = [...document.querySelectorAll("main .pager")].map((host) => {
  const previous = element("button", { type: "button" }, "\u2190 Previous");
  const next = element("button", { type: "button" }, "Next \u2192");
  const position = element("span", {});
  host.append(previous, position, next);
  const turn = (by) => () => {
    page += by;
    showGallery();
    byId("gallery").scrollIntoView();
  };
  previous.addEventListener("click", turn(-1));
  next.addEventListener("click", turn(1));
  return [previous, position, next];
});

function buildGallery() {
  byId("filter-class").append(element("option", { value: "" }, "every class"),
    ...classes.map((each, number) => element("option", { value: String(number) }, each.name)));
  for (const id of ["filter-class", "filter-called", "filter-right", "filter-name", "sort", "view"]) {
    byId(id).addEventListener("input", () => {
      page = 0;
      showGallery();
    });
  }
  byId("legend").append(
    element("div", { class: "scale" }, heatRamp(),
      element("span", {}, `Heat map, in multiples of the threshold. Below it faint differences are stretched; above it each doubling is an equal step, up to ${HOTTEST} times.`)),
    element("span", {}, element("span", { class: "mark above" }), "orange outline: above the threshold, on parts called defective"));
  if (images.some((image) => image.mask)) byId("legend").append(element("span", {}, element("span", { class: "mark outline" }), "blue outline: the defect as it was annotated"));
  byId("fold").open = !isNarrow;
  byId("fold").addEventListener("toggle", showGallery);
}

// The colours with their values: 0, parts of the threshold, the threshold, multiples.
function heatRamp() {
  const ramp = element("span", { class: "ramp", role: "img", "aria-label": `Colours from 0 to ${HOTTEST} times the threshold` });
  const stops = Array.from({ length: 41 }, (_, index) => `rgb(${heatColour(index / 40)})`);
  ramp.style.background = `linear-gradient(90deg, ${stops})`;
  const labels = [[0, "0"], [0.25, "\u00bc"], [1, "threshold"], [4, "\u00d74"], [HOTTEST, `\u00d7${HOTTEST}`]].map(([times, text]) => {
    const label = element("span", {}, text);
    label.style.left = `${100 * heat(times, 1)}%`;
    return label;
  });
  return element("span", { class: "ramp-box" }, ramp, element("span", { class: "ramp-labels", "aria-hidden": "true" }, ...labels));
}

// ---- the lightbox

let boxed = { list: [], image: null, repaint() {} };

function openLightbox(list, image) {
  boxed = { list, image };
  const pictures = ["image", "heat", "overlay"].map((kind) => pictureFrame(image, kind, data, LARGE_PICTURE));
  const titles = ["Image", "Heat map", "Overlay"];
  byId("lightbox-title").replaceChildren(breakable("bdi", image.name), " ", ...chips(image));
  byId("lightbox-pictures").replaceChildren(...pictures.map((picture, number) =>
    element("figure", {}, element("figcaption", {}, titles[number]), picture.frame)));
  const links = [element("a", { href: `${data.test_link}/${image.file}`, target: "_blank", rel: "noopener" }, image.width ? `Original, ${image.width} \u00d7 ${image.height} pixels` : "Original")];
  if (image.mapFile) links.push(element("a", { href: image.mapFile, target: "_blank", rel: "noopener" }, "Map as written"));
  byId("lightbox-links").replaceChildren(...links, element("span", { class: "hint" }, "The links work where the files still are."));
  boxed.repaint = () => {
    byId("lightbox-verdict").replaceChildren(`Score ${short(image.score)}, margin ${signed(margin(image))} to the threshold ${short(threshold)} `, badge(image));
    for (const picture of pictures) picture.repaint(threshold);
  };
  boxed.repaint();
  const place = list.indexOf(image);
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place < 0 || place + 1 >= list.length;
  if (!byId("lightbox").open) byId("lightbox").showModal();
}

function wireLightbox() {
  const box = byId("lightbox");
  const turn = (by) => {
    const next = boxed.list[boxed.list.indexOf(boxed.image) + by];
    if (next) openLightbox(boxed.list, next);
  };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("close").addEventListener("click", () => box.close());
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  box.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
}

// ---- all together

function update() {
  const alarms = countAbove(goodScores, threshold);
  const found = countAbove(badScores, threshold);
  byId("copy").textContent = `Copy -T ${Number(threshold.toPrecision(4))}`;
  byId("reset").disabled = threshold === data.threshold;
  if (data.labelled) {
    showSummary(alarms, badScores.length - found);
    showTable(alarms, badScores.length - found);
  } else showCounts(alarms);
  moveLine(threshold);
  moveDots(alarms, found);
  showSuspects();
  showGallery();
  if (byId("lightbox").open) boxed.repaint();
}

for (const text of document.querySelectorAll("h1 bdi, .facts bdi, code, .warning")) text.replaceChildren(...breakableFlags(text.textContent.replaceAll(" %", "\u00a0%")));
restoreTicks();
wireThreshold();
buildCurves();
if (!data.is_chance && data.labelled) buildSuspects();
buildGallery();
wireLightbox();
showTicks();
byId("export").addEventListener("click", exportTicked);
byId("untick").addEventListener("click", () => {
  ticked.clear();
  tick(-1, false);
  buildSuspects();
  showSuspects();
});
new ResizeObserver(() => {
  if (byId("histogram").clientWidth !== buildHistogram.width) {
    buildHistogram.width = byId("histogram").clientWidth;
    buildHistogram();
  }
}).observe(byId("histogram"));
setThreshold(threshold);
