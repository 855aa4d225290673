// What each key does, where it may, and the list of them under "?".

import { byId, table } from "./dom.js";

const STEP = 40; // CSS pixels of panning
const LEVELS = 8;

const GESTURES = [
  ["wheel, pinch", "zoom about the pointer"],
  ["drag", "move the picture"],
  ["right drag, shift + drag", "window (across) and level (up and down)"],
  ["double click, double tap", "as at first"],
  ["arrows in the worklist, Enter", "choose a study, open it"],
];

/** @returns rows of [keys as event.key has them, shift or null for either, words, meaning, act] */
function shortcuts(reading, worklist) {
  const active = (act) => () => reading.active && act(reading.active);
  const pan = (x, y) => active((view) => view.pan(x, y));
  const shift = (width, level) =>
    active((view) => view.changeWindow({ width: view.window.width + width, level: view.window.level + level }));
  return [
    [["?"], null, "?", "this list", () => byId("keys").showModal()],
    [["n"], null, "N", "next study", () => worklist.openNext(1)],
    [["p"], null, "P", "previous study", () => worklist.openNext(-1)],
    [[..."123456789"], null, "1 … 9", "go to that view", (key) => reading.focusView(Number(key) - 1)],
    [["m"], null, "M", "this view alone, or all again", () => reading.showAlone(reading.isAlone ? null : reading.active)],
    [["c"], null, "C", "class activation map on or off", () => reading.toggleCam()],
    [["["], null, "[", "map fainter", () => reading.changeOpacity(-0.1)],
    [["]"], null, "]", "map stronger", () => reading.changeOpacity(0.1)],
    [["+", "="], null, "+", "zoom in", active((view) => view.zoom(1.25))],
    [["-", "_"], null, "−", "zoom out", active((view) => view.zoom(0.8))],
    [["arrowleft"], false, "arrows", "move the picture", pan(-STEP, 0)],
    [["arrowright"], false, null, null, pan(STEP, 0)],
    [["arrowup"], false, null, null, pan(0, -STEP)],
    [["arrowdown"], false, null, null, pan(0, STEP)],
    [["arrowleft"], true, "shift + ← →", "window narrower, wider", shift(-LEVELS, 0)],
    [["arrowright"], true, null, null, shift(LEVELS, 0)],
    [["arrowup"], true, "shift + ↑ ↓", "level lower (brighter), higher (darker)", shift(0, -LEVELS)],
    [["arrowdown"], true, null, null, shift(0, LEVELS)],
    [["i"], null, "I", "black for white", () => reading.invert()],
    [["r", "0"], null, "R", "as at first", active((view) => view.reset())],
  ];
}

/** Arrows belong to lists, fields and text; over a picture, or with nothing chosen, to the picture. */
function mayAct(event, key) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return false;
  if (event.target.closest("select, input:not([type=range], [type=file])")) return false;
  return !key.startsWith("arrow") || event.target === document.body || event.target.matches("canvas");
}

export function listenForKeys(reading, worklist) {
  const known = shortcuts(reading, worklist);
  byId("keys-list").append(
    table("On the keyboard", ["Key", "Does"], known.filter(([, , words]) => words).map(([, , words, meaning]) => [words, meaning])),
    table("With mouse, pen or fingers", ["Gesture", "Does"], GESTURES),
  );
  byId("help").addEventListener("click", () => byId("keys").showModal());
  addEventListener("keydown", (event) => {
    const key = event.key.toLowerCase();
    const found = known.find(([keys, shift]) => keys.includes(key) && (shift === null || shift === event.shiftKey));
    if (!found || event.defaultPrevented || !mayAct(event, key)) return;
    event.preventDefault();
    found[4](key);
  });
}
