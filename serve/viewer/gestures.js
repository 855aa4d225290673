// Mouse, pen, fingers and wheel over a canvas to three wishes: zoom about a point, pan, and window.

const WHEEL = 0.0015; // of a zoom's logarithm, for a pixel of scrolling
const LINE = 40; // pixels, where a wheel counts in lines

/**
 * @param {HTMLElement} target
 * @param {{zoom: (factor, x, y) => void, pan: (x, y) => void, window: (x, y) => void, reset: () => void}} wishes lengths
 *   in CSS pixels, points from the target's upper left corner
 */
export function listenForGestures(target, wishes) {
  const fingers = new Map(); // pointer id to where it was last

  const place = (event) => {
    const box = target.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };

  target.addEventListener("pointerdown", (event) => {
    if (fingers.size === 2) return;
    target.focus({ preventScroll: true });
    target.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, place(event));
  });

  target.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = place(event);
    const [x, y] = [now.x - before.x, now.y - before.y];
    if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
      const distance = (at) => Math.max(1, Math.hypot(at.x - other.x, at.y - other.y));
      wishes.zoom(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      wishes.pan(x / 2, y / 2); // the middle between two fingers goes half as far as one of them
    } else if (event.shiftKey || (event.buttons & 2) !== 0) wishes.window(x, y);
    else wishes.pan(x, y);
    fingers.set(event.pointerId, now);
  });

  for (const kind of ["pointerup", "pointercancel"]) target.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  target.addEventListener("contextmenu", (event) => event.preventDefault());
  target.addEventListener("dblclick", wishes.reset);
  target.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE * event.deltaY : event.deltaY;
    const pinch = event.ctrlKey ? 6 : 1; // a trackpad's pinch comes as a wheel with ctrl, in small steps
    const { x, y } = place(event);
    wishes.zoom(Math.exp(-pinch * WHEEL * pixels), x, y);
  }, { passive: false });
}
