// Gray levels and a map to the pixels on screen. The same scale, colors and interpolation as mura_ray/render/overlay.py
// and mura_ray/model/cam.py, which a test compares: at one pixel of the screen a pixel of the view, painted is the same.

export const GRAY_LEVELS = 256;
export const FULL_WINDOW = { level: 128, width: 256, inverted: false }; // leaves every gray level as it is

/**
 * What each gray level is shown as (DICOM PS3.3 C.11.2.1.2.1, linear).
 * @param {{level: number, width: number, inverted: boolean}} window
 * @returns {Uint8ClampedArray} [256]
 */
export function windowTable({ level, width, inverted }) {
  return Uint8ClampedArray.from({ length: GRAY_LEVELS }, (_, gray) => {
    const share = width > 1 ? (gray - (level - 0.5)) / (width - 1) + 0.5 : Number(gray > level - 0.5);
    const shown = 255 * Math.min(1, Math.max(0, share));
    return inverted ? 255 - shown : shown;
  });
}

/** A raw map as the server sends it: `{values: Float32Array, rows, columns}`, row by row, in logits. */
export function readMap({ shape: [rows, columns], float32_base64: encoded }) {
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  return { values: new Float32Array(bytes.buffer), rows, columns };
}

/**
 * Where pixels lie between a map's cells, bilinear: cells are areas, so a cell's value holds at its middle.
 * @param {number} numPixels on the screen
 * @param {number} start of the first one, as a share of the view's side
 * @param {number} step from one to the next, as a share of the view's side
 * @param {number} numCells of the map along that side
 */
function between(numPixels, start, step, numCells) {
  const lower = new Uint16Array(numPixels), upper = new Uint16Array(numPixels), share = new Float32Array(numPixels);
  for (let i = 0; i < numPixels; i++) {
    const position = Math.min(numCells - 1, Math.max(0, (start + (i + 0.5) * step) * numCells - 0.5));
    lower[i] = Math.floor(position);
    upper[i] = Math.min(lower[i] + 1, numCells - 1);
    share[i] = position - lower[i];
  }
  return { lower, upper, share };
}

/**
 * How strongly each pixel is painted: 255 from `fullLogit` above the ground on, linear below. The ground is what the map
 * says everywhere: its least value, or 0 where that is below.
 * @param map of `readMap`
 * @param {{width, height, left, top, stepX, stepY}} part pixels across and down, where the first begins and how far the
 *   next is, as shares of the view's width and height
 * @returns {Uint8ClampedArray} [height * width]
 */
export function paintLevels({ values, rows, columns }, { width, height, left, top, stepX, stepY }, fullLogit) {
  const x = between(width, left, stepX, columns), y = between(height, top, stepY, rows);
  const levels = new Uint8ClampedArray(width * height); // rounds half to even and clips, as numpy does
  const row = new Float32Array(columns);
  const ground = Math.max(0, values.reduce((least, value) => Math.min(least, value)));
  for (let j = 0, at = 0; j < height; j++) {
    for (let c = 0; c < columns; c++) {
      const above = values[y.lower[j] * columns + c], below = values[y.upper[j] * columns + c];
      row[c] = (above + y.share[j] * (below - above) - ground) * (255 / fullLogit);
    }
    for (let i = 0; i < width; i++, at++) levels[at] = row[x.lower[i]] + x.share[i] * (row[x.upper[i]] - row[x.lower[i]]);
  }
  return levels;
}

/**
 * @param {Uint8ClampedArray} pixels RGBA, gray levels in R; not changed
 * @param {Uint8ClampedArray} table of `windowTable`
 * @param {Uint8ClampedArray | null} levels of `paintLevels`; null: no map
 * @param {number[][]} colors RGB of each level
 * @param {number} opacity of the strongest paint, 0 to 1
 * @param {Uint8ClampedArray} painted RGBA, filled
 */
export function paint(pixels, table, levels, colors, opacity, painted) {
  for (let i = 0, at = 0; at < pixels.length; i++, at += 4) {
    const gray = table[pixels[at]];
    const level = levels === null ? 0 : levels[i];
    painted[at + 3] = 255;
    if (level === 0) {
      painted[at] = painted[at + 1] = painted[at + 2] = gray;
      continue;
    }
    const color = colors[level], strength = (opacity * level) / 255;
    for (let channel = 0; channel < 3; channel++) painted[at + channel] = gray + strength * (color[channel] - gray);
  }
}
