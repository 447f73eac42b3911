// The score histogram and the two curves, as SVG.

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// How many of the ascending scores are above the threshold.
function countAbove(ascending, threshold) {
  let [low, high] = [0, ascending.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ascending[middle] > threshold) high = middle;
    else low = middle + 1;
  }
  return ascending.length - low;
}

// Scores to [0, 1]: linear below half the median and logarithmic above, so that far outliers leave room for the rest.
function scoreScale(values) {
  const sorted = Float64Array.from(values).sort();
  const unit = Math.max(sorted[sorted.length >> 1] / 2, 1e-3);
  const bend = (value) => Math.log1p(Math.max(value, 0) / unit);
  const [low, high] = [bend(0.9 * sorted[0]), bend(1.05 * sorted[sorted.length - 1] + 1e-3)];
  return {
    at: (value) => Math.min(1, Math.max(0, (bend(value) - low) / (high - low))),
    value: (share) => unit * Math.expm1(low + share * (high - low)),
  };
}

// Round numbers with room for their labels: the ends first, then powers of ten, then what fits between.
function scoreTicks(scale, width) {
  const powers = [7, 6, 5, 4, 3, 2, 1, 0, -1, -2];
  const ticks = [];
  for (const value of [0, ...[1, 5, 2].flatMap((digit) => powers.map((power) => digit * 10 ** power))]) {
    const share = scale.at(value);
    const isOnScale = (share > 0 || scale.value(0) <= value) && share < 1;
    if (isOnScale && ticks.every(([, other]) => Math.abs(other - share) * width > 48)) ticks.push([value, share]);
  }
  return ticks.sort((a, b) => a[0] - b[0]);
}

// rows: {label(above), scores ascending, wrongAbove: true, false or null}. Returns a function that moves the line.
function drawHistogram(host, rows, scale, pick) {
  const width = Math.max(240, host.clientWidth);
  const height = rows.length > 8 ? 28 : 52;
  const bins = Math.floor(width / 8);
  const ticks = scoreTicks(scale, width);
  host.replaceChildren();
  const updates = rows.map((row, number) => {
    const counts = new Array(bins).fill(0);
    for (const score of row.scores) counts[Math.min(bins - 1, Math.floor(scale.at(score) * bins))] += 1;
    const most = Math.max(1, ...counts);
    const bars = () =>
      counts.flatMap((count, bin) => {
        const tall = count && Math.max(2, (count / most) * (height - 2));
        return count ? [svg("rect", { x: bin * (width / bins) + 0.5, y: height - tall, width: width / bins - 1, height: tall })] : [];
      });
    const below = svg("rect", { x: 0, y: 0, height });
    const above = svg("rect", { y: 0, height });
    const line = svg("line", { y1: 0, y2: height, class: "threshold-line" });
    const stripes = svg("pattern", { id: `stripes-${number}`, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("rect", { width: 5, height: 5, class: "stripe-ground" }), svg("rect", { width: 2.4, height: 5, class: "stripe" }));
    const groups = [["below", row.wrongAbove === false], ["above", row.wrongAbove === true]].map(([side, wrong]) => {
      const group = svg("g", { "clip-path": `url(#${side}-${number})`, class: row.wrongAbove === null ? "bars-neutral" : row.wrongAbove ? "bars-good" : "bars-defective" }, ...bars());
      if (wrong) group.style.fill = `url(#stripes-${number})`;
      return group;
    });
    const lines = ticks.map(([, share]) => svg("line", { x1: share * width, x2: share * width, y1: 0, y2: height, class: "grid-line" }));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" }, ...lines,
      svg("defs", {}, svg("clipPath", { id: `below-${number}` }, below), svg("clipPath", { id: `above-${number}` }, above), stripes),
      ...groups, svg("line", { x1: 0, x2: width, y1: height - 0.5, y2: height - 0.5, class: "base-line" }), line);
    const label = element("p", { class: "row-label" });
    host.append(label, picture);
    return (threshold) => {
      const x = scale.at(threshold) * width;
      below.setAttribute("width", x);
      above.setAttribute("x", x);
      above.setAttribute("width", width - x);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      const text = row.label(countAbove(row.scores, threshold));
      label.replaceChildren(breakable("bdi", row.name), ` ${text}`);
      picture.setAttribute("aria-label", `${row.name} ${text}`);
    };
  });
  const axis = svg("svg", { viewBox: `0 0 ${width} 40`, width, height: 40, class: "axis", "aria-hidden": "true" });
  for (const [value, share] of ticks) {
    const anchor = share * width < 12 ? "start" : (1 - share) * width < 24 ? "end" : "middle";
    axis.append(svg("line", { x1: share * width, x2: share * width, y1: 0, y2: 5, class: "tick" }),
      svg("text", { x: share * width, y: 18, "text-anchor": anchor }, value.toLocaleString("en")));
  }
  axis.append(svg("text", { x: width, y: 36, "text-anchor": "end" }, "score \u2192 more unusual"));
  host.append(axis);
  host.onpointerdown = host.onpointermove = (event) => {
    const picture = event.target.closest("svg");
    if (!picture || (event.type === "pointermove" && (event.buttons !== 1 || event.pointerType === "touch"))) return;
    const box = picture.getBoundingClientRect();
    pick(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  };
  return (threshold) => updates.forEach((update) => update(threshold));
}

// Points of both curves at every distinct score, from the highest threshold to the lowest.
function curvePoints(good, defective) {
  const all = [...good.map((score) => [score, 0]), ...defective.map((score) => [score, 1])].sort((a, b) => b[0] - a[0]);
  const points = [];
  const called = [0, 0];
  all.forEach(([score, label], index) => {
    called[label] += 1;
    if (index + 1 === all.length || all[index + 1][0] !== score) {
      points.push({ falseRate: called[0] / good.length, found: called[1] / defective.length, precision: called[1] / (called[0] + called[1]) });
    }
  });
  return points;
}

// The area under the precision-recall curve, as steps.
function averagePrecision(points) {
  return points.reduce((sum, point, index) => sum + (point.found - (index ? points[index - 1].found : 0)) * point.precision, 0);
}

// A curve through points [x, y] of [0, 1]; returns a function that moves the dot to a point, or hides it.
function drawCurve(host, title, labelX, labelY, points, diagonal) {
  const [side, left, top] = [220, 44, 8];
  const place = ([x, y]) => `${(left + x * side).toFixed(2)} ${(top + (1 - y) * side).toFixed(2)}`;
  const picture = svg("svg", { viewBox: `0 0 ${left + side + 14} ${top + side + 42}`, role: "img" });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const percent = `${100 * share}`;
    picture.append(
      svg("path", { d: `M${place([share, 0])}L${place([share, 1])}M${place([0, share])}L${place([1, share])}`, class: "grid-line" }),
      svg("text", { x: left + share * side, y: top + side + 16, "text-anchor": "middle" }, percent),
      svg("text", { x: left - 6, y: top + (1 - share) * side + 4, "text-anchor": "end" }, percent));
  }
  if (diagonal) picture.append(svg("path", { d: `M${place([0, 0])}L${place([1, 1])}`, class: "chance" }));
  const dot = svg("circle", { r: 5, class: "dot" });
  picture.append(
    svg("path", { d: `M${points.map(place).join("L")}`, class: "curve" }),
    svg("text", { x: left + side / 2, y: top + side + 36, "text-anchor": "middle" }, labelX),
    svg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${top + side / 2}) rotate(-90)` }, labelY), dot);
  host.append(element("figure", {}, element("figcaption", {}, title), picture));
  return (point) => {
    dot.setAttribute("visibility", point ? "visible" : "hidden");
    if (point) [dot.cx.baseVal.value, dot.cy.baseVal.value] = place(point).split(" ").map(Number);
    const where = point ? `at the threshold ${labelX} ${percent(point[0])}, ${labelY} ${percent(point[1])}` : "";
    picture.setAttribute("aria-label", `${title}; ${where}`);
  };
}

function percent(share) {
  if (!Number.isFinite(share)) return "\u2013";
  const text = (100 * share).toFixed(1);
  return `${text === "100.0" && share < 1 ? "99.9" : text === "0.0" && share > 0 ? "0.1" : text.replace(/\.0$/, "")}\u00a0%`;
}
