// One view on the screen: its picture, its window, its map, and what fingers and keys do to them.

import { RequestError, picture } from "./api.js";
import { copyOf } from "./dom.js";
import { listenForGestures } from "./gestures.js";
import { decimals, percent } from "./numbers.js";
import { FULL_WINDOW, paint, paintLevels, readMap, windowTable } from "./paint.js";
import { Placement } from "./placement.js";

const LEVELS_A_PIXEL = 0.6; // of a drag
const MOST_WIDTH = 512;

const clip = (value, low, high) => Math.min(high, Math.max(low, value));

export class View {
  #canvas;
  #scratch = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  #bitmap = null;
  #placement = null;
  #map = null;
  #sampled = null; // the picture at its place, before windowing: {part, pixels, levels}
  #drawing = 0;
  #closed = new AbortController();
  #resizing = new ResizeObserver(() => this.#resize());

  /**
   * @param {File} file
   * @param {{scale, camShown: boolean, opacity: number}} shared what all views have in common; scale is the server's
   * @param {(view: View) => void} changed called when its window may be another
   */
  constructor(file, shared, changed) {
    this.file = file;
    this.window = { ...FULL_WINDOW };
    this.element = copyOf("view");
    this.element.querySelector(".name").textContent = this.element.querySelector(".name").title = file.name;
    this.shared = shared;
    this.changed = () => changed(this);
    this.#canvas = this.element.querySelector("canvas");
    listenForGestures(this.#canvas, {
      zoom: (factor, x, y) => this.zoom(factor, x * devicePixelRatio, y * devicePixelRatio),
      pan: (x, y) => this.pan(x, y),
      window: (x, y) => this.changeWindow({ width: this.window.width + x * LEVELS_A_PIXEL, level: this.window.level + y * LEVELS_A_PIXEL }),
      reset: () => this.reset(),
    });
    this.#resizing.observe(this.element.querySelector(".screen"));
    this.#describe(null);
    this.#load();
  }

  /** Takes over what the server says of this view, once it does. */
  answer(view) {
    this.#map = readMap(view.cam);
    const shown = this.element.querySelector(".probability");
    shown.textContent = decimals(view.probability);
    shown.value = view.probability;
    shown.title = percent(view.probability);
    this.#describe(view);
    this.#sample();
  }

  focus() {
    this.#canvas.focus();
  }

  zoom(factor, x, y) {
    this.#placement?.zoom(factor, x, y);
    this.#sample();
  }

  /** By CSS pixels. */
  pan(x, y) {
    this.#placement?.pan(x * devicePixelRatio, y * devicePixelRatio);
    this.#sample();
  }

  changeWindow(values) {
    Object.assign(this.window, values);
    this.window.level = clip(this.window.level, 0, 255);
    this.window.width = clip(this.window.width, 1, MOST_WIDTH);
    this.draw();
  }

  reset() {
    this.#placement?.fit();
    this.window = { ...FULL_WINDOW };
    this.#sample();
  }

  /** Draws before the screen is next refreshed, however often it is called until then. */
  draw() {
    if (this.#drawing === 0) {
      this.#drawing = requestAnimationFrame(() => {
        this.#drawing = 0;
        this.#drawNow();
        this.changed();
      });
    }
  }

  close() {
    this.#closed.abort();
    this.#resizing.disconnect();
    cancelAnimationFrame(this.#drawing);
    this.#bitmap?.close();
    this.#bitmap = this.#placement = this.#sampled = null;
  }

  async #load() {
    const { signal } = this.#closed;
    const message = this.element.querySelector(".message");
    message.textContent = "Loading …";
    try {
      const blob = await picture(this.file, signal);
      const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      if (signal.aborted) return bitmap.close();
      this.#bitmap = bitmap;
      this.#placement = new Placement({ width: bitmap.width, height: bitmap.height });
      message.textContent = "";
      this.#resize();
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof RequestError)) throw error;
      message.textContent = error.message;
      message.classList.add("problem");
    }
  }

  #describe(view) {
    const said = view === null ? "" : `, probability ${decimals(view.probability)}, ${view.width} by ${view.height} pixels`;
    this.#canvas.setAttribute("aria-label", `${this.file.name}${said}. Question mark lists the keys.`);
  }

  #resize() {
    const box = this.element.querySelector(".screen").getBoundingClientRect();
    const [width, height] = [box.width, box.height].map((length) => Math.round(length * devicePixelRatio));
    if (!this.#placement || width === 0 || height === 0) return;
    this.#canvas.width = this.#scratch.canvas.width = width;
    this.#canvas.height = this.#scratch.canvas.height = height;
    this.#placement.resize(width, height);
    this.#sample();
    cancelAnimationFrame(this.#drawing); // a canvas is empty after its size was set: no frame may show it so
    this.#drawing = 0;
    this.#drawNow();
    this.changed();
  }

  /** Marks the picture at its place as to be taken anew. */
  #sample() {
    this.#sampled = null;
    this.draw();
  }

  #sampledNow() {
    const { part, scale, left, top } = this.#placement;
    if (part === null) return { part, pixels: null, levels: null };
    const { width, height } = this.#bitmap;
    this.#scratch.imageSmoothingQuality = "high"; // setting a canvas' size has reset it
    this.#scratch.drawImage(this.#bitmap, left, top, width * scale, height * scale);
    const pixels = this.#scratch.getImageData(part.x, part.y, part.width, part.height);
    this.#scratch.clearRect(0, 0, this.#scratch.canvas.width, this.#scratch.canvas.height);
    const levels = this.#map && paintLevels(this.#map, part, this.shared.scale.full_logit);
    return { part, pixels, levels };
  }

  #drawNow() {
    if (!this.#placement) return;
    this.#sampled ??= this.#sampledNow();
    const { part, pixels, levels } = this.#sampled;
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    if (part !== null) {
      const painted = new ImageData(part.width, part.height);
      const { camShown, opacity, scale } = this.shared;
      paint(pixels.data, windowTable(this.window), camShown ? levels : null, scale.colors, opacity, painted.data);
      context.putImageData(painted, part.x, part.y);
    }
    const { level, width } = this.window;
    const zoomed = Math.round(100 * this.#placement.scale);
    this.element.querySelector(".corner").textContent = `${zoomed} %   L ${Math.round(level)}   W ${Math.round(width)}`;
  }
}
