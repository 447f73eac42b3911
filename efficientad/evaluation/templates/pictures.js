// Heat maps, overlays and contours, drawn relative to the threshold of the moment.

const FINEST_PICTURE = 320; // pixels of a canvas' longer side in the gallery

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children); // strings become text, never markup
  return made;
}

// An element with a text whose words may break after _ / and, before a letter, after - .
function breakable(tag, text, attributes = {}) {
  const parts = text.split(/(?<=[\p{L}\p{N}](?:[_/]|[-.](?=\p{L})))(?=[\p{L}\p{N}])/u);
  return element(tag, attributes, ...parts.flatMap((part, index) => (index ? [element("wbr"), part] : [part])));
}

// The parts of a text with command-line flags, which do not break after their dashes.
function breakableFlags(text) {
  return text.split(/( +)/).map((word) => (word.startsWith("-") ? breakable("span", word, { class: "flag" }) : breakable("span", word)));
}

// The values of an image's map, side x side, on the 0-255 scale, by the 64 levels of its letters.
function mapLevels(image, data) {
  if (!image.levels) {
    const codes = new Map([...data.map_levels].map((letter, level) => [letter, level]));
    image.levels = Uint8Array.from(image.map, (letter) => codes.get(letter));
  }
  return image.levels;
}

function levelValue(level, peak, data) {
  const last = data.map_levels.length - 1;
  if (level === last) return peak; // without rounding: it is never below the score, so a defect is always marked
  return data.map_floor * Math.expm1((level / last) * Math.log1p(Math.max(peak, 0) / data.map_floor));
}

const HOTTEST = 32; // times the threshold: the end of the colours

// [0, 1], 0.5 at the threshold: as a square root below it, so that faint structure shows, and as a logarithm above
// it, so that scores far beyond the threshold stay apart.
function heat(value, threshold) {
  const times = Math.max(value, 0) / Math.max(threshold, 1e-6);
  return times <= 1 ? 0.5 * Math.sqrt(times) : Math.min(1, 0.5 + (0.5 * Math.log(times)) / Math.log(HOTTEST));
}

const HEAT_STOPS = [
  [0, 9, 12, 38], [0.25, 58, 52, 150], [0.47, 142, 66, 160], [0.53, 214, 72, 84], [0.75, 250, 152, 70], [1, 253, 244, 180],
];

function heatColour(level) {
  const upper = Math.max(1, HEAT_STOPS.findIndex((stop) => stop[0] >= level));
  const [from, to] = [HEAT_STOPS[upper - 1], HEAT_STOPS[upper]];
  const share = (level - from[0]) / (to[0] - from[0]);
  return [1, 2, 3].map((channel) => Math.round(from[channel] + share * (to[channel] - from[channel])));
}

function overlayColour(level) {
  return [255, Math.round(210 - 150 * level), 40, Math.round(255 * Math.max(0, 0.55 * (level - 0.25)))];
}

const scratch = document.createElement("canvas");

function paintMap(canvas, image, threshold, overlay, data) {
  const levels = mapLevels(image, data);
  const side = Math.round(Math.sqrt(levels.length));
  const values = Array.from(data.map_levels, (_, level) => levelValue(level, image.peak, data));
  const palette = values.map((value) => {
    const height = heat(value, threshold);
    return overlay ? overlayColour(height) : [...heatColour(height), 255];
  });
  const pixels = new ImageData(side, side);
  levels.forEach((level, index) => pixels.data.set(palette[level], 4 * index));
  scratch.width = scratch.height = side;
  scratch.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(scratch, 0, 0, canvas.width, canvas.height);
  if (!overlay) return;
  if (image.score > threshold) strokeTwice(context, isoline(levels, side, values, threshold, canvas), "#ff5a1f");
  if (image.mask) strokeTwice(context, maskOutline(image.mask, canvas), "#4da3ff");
}

// About two pixels of the screen, more on large pictures, whatever the canvas' own resolution; seen on dark and light.
function strokeTwice(context, path, colour) {
  const shown = context.canvas.clientWidth || context.canvas.width;
  const thickness = ((1.6 + shown / 250) * context.canvas.width) / shown;
  context.lineCap = context.lineJoin = "round";
  for (const [style, times] of [["rgb(0 0 0 / 70%)", 1.8], [colour, 1]]) {
    context.strokeStyle = style;
    context.lineWidth = times * thickness;
    context.stroke(path);
  }
}

// Where the map crosses the threshold: marching squares between the pixels' centres, below the threshold all around.
function isoline(levels, side, values, threshold, canvas) {
  const path = new Path2D();
  const [stepX, stepY] = [canvas.width / side, canvas.height / side];
  const at = (x, y) => (x < 0 || y < 0 || x >= side || y >= side ? 0 : values[levels[y * side + x]]);
  for (let y = -1; y < side; y++) {
    for (let x = -1; x < side; x++) {
      const heights = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)];
      const above = heights.filter((height) => height > threshold).length;
      if (above === 0 || above === 4) continue;
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
      const crossings = corners.flatMap(([column, row], corner) => {
        const [here, next, [nextColumn, nextRow]] = [heights[corner], heights[(corner + 1) % 4], corners[(corner + 1) % 4]];
        if (here > threshold === next > threshold) return [];
        const share = (threshold - here) / (next - here);
        return [[(column + share * (nextColumn - column) + 0.5) * stepX, (row + share * (nextRow - row) + 0.5) * stepY]];
      });
      for (let pair = 0; pair + 1 < crossings.length; pair += 2) {
        path.moveTo(...crossings[pair]);
        path.lineTo(...crossings[pair + 1]);
      }
    }
  }
  return path;
}

// The outline of a mask given as "width height run run ...": outside, inside, outside, ...
function maskOutline(text, canvas) {
  const [width, height, ...runs] = text.split(" ").map(Number);
  const inside = new Uint8Array(width * height);
  let place = 0;
  runs.forEach((run, index) => {
    if (index % 2) inside.fill(1, place, place + run);
    place += run;
  });
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x] === 1;
  const [stepX, stepY] = [canvas.width / width, canvas.height / height];
  const outline = new Path2D();
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (at(x, y) !== at(x - 1, y)) {
        outline.moveTo(x * stepX, y * stepY);
        outline.lineTo(x * stepX, (y + 1) * stepY);
      }
      if (at(x, y) !== at(x, y - 1)) {
        outline.moveTo(x * stepX, y * stepY);
        outline.lineTo((x + 1) * stepX, y * stepY);
      }
    }
  }
  return outline;
}

// Paints only what is on the screen, and the rest when it gets there: a step of the slider stays cheap.
const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.isOnScreen = isIntersecting;
    if (isIntersecting) target.paint?.();
  }
}, { rootMargin: "100px" });

function paintWhenSeen(target, paint) {
  target.paint = () => {
    target.paint = null;
    paint();
  };
  if (target.isOnScreen) target.paint();
  else if (target.isOnScreen === undefined) {
    target.isOnScreen = false;
    onScreen.observe(target);
  }
}

// A frame with the picture(s) of one kind: "image", "heat" or "overlay". repaint(threshold) follows the slider.
function pictureFrame(image, kind, data, finest = FINEST_PICTURE) {
  const frame = element("span", { class: "frame" });
  const names = { image: "image", heat: "heat map", overlay: "overlay" };
  if (!image.thumbnail) {
    frame.append(element("span", { class: "no-picture" }, "no picture embedded"));
    return { frame, repaint() {} };
  }
  const stack = element("span", { class: "stack" });
  const scale = 100 / Math.max(image.width, image.height);
  stack.style.width = `${Math.max(1, image.width * scale)}%`;
  stack.style.height = `${Math.max(1, image.height * scale)}%`;
  frame.append(stack);
  if (kind !== "heat") {
    const alternative = kind === "image" ? names[kind] : "";
    stack.append(element("img", { src: `data:image/webp;base64,${image.thumbnail}`, alt: alternative, decoding: "async" }));
  }
  let repaint = () => {};
  if (kind !== "image") {
    const canvas = element("canvas", { role: "img", "aria-label": names[kind] });
    canvas.width = Math.max(1, Math.round((finest * scale * image.width) / 100));
    canvas.height = Math.max(1, Math.round((finest * scale * image.height) / 100));
    stack.append(canvas);
    repaint = (threshold) => paintMap(canvas, image, threshold, kind === "overlay", data);
  }
  return { frame, repaint };
}
