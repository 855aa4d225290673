// Where a picture lies on its screen: zoom and pan. All lengths in the screen's own pixels.

const MOST = 16; // of the screen's pixels for one of the picture's
const KEPT = 48; // of the picture stays on the screen

export class Placement {
  #screen = { width: 1, height: 1 };

  /** @param {{width: number, height: number}} picture its pixels */
  constructor(picture) {
    this.picture = picture;
    this.scale = 1; // the screen's pixels for one of the picture's
    this.left = 0;
    this.top = 0;
    this.fitted = true; // follows the screen's size until it is moved
  }

  get #fitScale() {
    return Math.min(this.#screen.width / this.picture.width, this.#screen.height / this.picture.height);
  }

  resize(width, height) {
    const middle = [(this.#screen.width / 2 - this.left) / this.scale, (this.#screen.height / 2 - this.top) / this.scale];
    this.#screen = { width, height };
    if (this.fitted) return this.fit();
    this.left = width / 2 - middle[0] * this.scale;
    this.top = height / 2 - middle[1] * this.scale;
    this.#keep();
  }

  fit() {
    this.fitted = true;
    this.scale = this.#fitScale;
    this.left = (this.#screen.width - this.picture.width * this.scale) / 2;
    this.top = (this.#screen.height - this.picture.height * this.scale) / 2;
  }

  /** Zooms by a factor about a point of the screen, by default its middle. */
  zoom(factor, x = this.#screen.width / 2, y = this.#screen.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.#fitScale / 2), Math.max(MOST, this.#fitScale));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.#keep();
  }

  pan(x, y) {
    this.left += x;
    this.top += y;
    this.fitted = false;
    this.#keep();
  }

  #keep() {
    const keep = (start, length, screen) => Math.min(screen - KEPT, Math.max(KEPT - length, start));
    this.left = keep(this.left, this.picture.width * this.scale, this.#screen.width);
    this.top = keep(this.top, this.picture.height * this.scale, this.#screen.height);
  }

  /** The part of the screen that shows the picture, in whole pixels, and what `paintLevels` asks of it; null: none. */
  get part() {
    const { width: across, height: down } = this.picture;
    const left = Math.max(0, Math.round(this.left)), top = Math.max(0, Math.round(this.top));
    const width = Math.min(this.#screen.width, Math.round(this.left + across * this.scale)) - left;
    const height = Math.min(this.#screen.height, Math.round(this.top + down * this.scale)) - top;
    if (width <= 0 || height <= 0) return null;
    const stepX = 1 / (across * this.scale), stepY = 1 / (down * this.scale);
    return { x: left, y: top, width, height, left: (left - this.left) * stepX, top: (top - this.top) * stepY, stepX, stepY };
  }
}
