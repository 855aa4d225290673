// The study that is open: its views side by side, the tools above them, what the server said below or beside them.

import { byId, element } from "./dom.js";
import { answerParts } from "./numbers.js";
import { View } from "./view.js";

const CLEARLY = 1.15;
const ASPECT = 0.8; // width over height of most radiographs, for as long as the server has not said them
const STATES = { waiting: "Waiting for its turn …", predicting: "Predicting …", busy: "The server is busy; the study is sent again shortly." };

export class Reading {
  #study = null;
  #views = [];
  #active = null;
  #alone = false;
  #shared;

  /** @param scale `{full_logit, full_opacity, colors}` of the server */
  constructor(scale) {
    this.#shared = { scale, camShown: true, opacity: scale.full_opacity };
    new ResizeObserver(() => this.#arrange()).observe(byId("views"));
    this.#listen();
    drawLegend(scale);
    this.#showTools();
  }

  get study() {
    return this.#study;
  }

  get active() {
    return this.#active;
  }

  get isAlone() {
    return this.#alone;
  }

  /** Shows a study, whatever its state; null: none. */
  open(study) {
    for (const view of this.#views) view.close();
    this.#study = study;
    this.#alone = false;
    byId("empty").hidden = study !== null;
    byId("opened").hidden = study === null;
    this.#views = (study?.files ?? []).map((file) => this.#newView(file));
    byId("views").replaceChildren(...this.#views.map((view) => view.element));
    this.#active = this.#views[0] ?? null;
    this.refresh();
    this.#showTools();
    byId("numbers").scrollTop = 0;
  }

  /** Takes over what is new of the open study. */
  refresh() {
    if (this.#study === null) return;
    const { name, files, state, answer, problem, leftOut } = this.#study;
    if (files.length !== this.#views.length) return this.open(this.#study);
    answer?.views.forEach((view, place) => this.#views[place].answer(view));
    const [first, ...others] = answer ? answerParts(answer) : [[told(state, problem)]];
    if (leftOut.length > 0) first.push(element("p", { class: "problem" }, `Left out, could not be read: ${leftOut.join(", ")}.`));
    const parts = [[element("h2", {}, name), ...first], ...others];
    byId("numbers").replaceChildren(...parts.map((part) => element("div", {}, ...part)));
    this.#arrange();
  }

  focusView(place) {
    const view = this.#views[place];
    if (this.#alone && view) this.showAlone(view);
    view?.focus();
  }

  toggleCam() {
    this.#share({ camShown: !this.#shared.camShown });
  }

  /** Of the strongest paint, 0 to 1. */
  changeOpacity(by) {
    this.#share({ opacity: Math.min(1, Math.max(0, this.#shared.opacity + by)) });
  }

  invert() {
    this.#active?.changeWindow({ inverted: !this.#active.window.inverted });
  }

  /** Gives all room to one view, or to all again for null. */
  showAlone(view) {
    this.#alone = view !== null;
    if (view) this.#activate(view);
    this.#arrange();
    view?.focus();
  }

  #newView(file) {
    const view = new View(file, this.#shared, (changed) => this.#activate(changed, false));
    const activate = () => this.#activate(view);
    view.element.addEventListener("focusin", activate);
    view.element.querySelector(".alone").addEventListener("click", () => this.showAlone(this.#alone ? null : view));
    return view;
  }

  #activate(view, chosen = true) {
    if (chosen) this.#active = view;
    if (this.#active === view) this.#showTools();
  }

  #share(values) {
    Object.assign(this.#shared, values);
    for (const view of this.#views) view.draw();
    this.#showTools();
  }

  #showTools() {
    const { camShown, opacity } = this.#shared;
    const window = this.#active?.window;
    for (const view of this.#views) {
      view.element.classList.toggle("active", view === this.#active && this.#views.length > 1);
      view.element.querySelector(".alone").setAttribute("aria-pressed", this.#alone);
    }
    byId("cam").setAttribute("aria-pressed", camShown);
    byId("opacity").value = 100 * opacity;
    byId("opacity-value").value = `${Math.round(100 * opacity)} %`;
    if (!window) return;
    byId("invert").setAttribute("aria-pressed", window.inverted);
    for (const name of ["level", "width"]) byId(name).value = byId(`${name}-value`).value = Math.round(window[name]);
  }

  #listen() {
    byId("cam").addEventListener("click", () => this.toggleCam());
    byId("invert").addEventListener("click", () => this.invert());
    byId("reset").addEventListener("click", () => this.#active?.reset());
    byId("zoom-in").addEventListener("click", () => this.#active?.zoom(1.25));
    byId("zoom-out").addEventListener("click", () => this.#active?.zoom(0.8));
    byId("opacity").addEventListener("input", (event) => this.#share({ opacity: event.target.valueAsNumber / 100 }));
    for (const name of ["level", "width"]) {
      byId(name).addEventListener("input", (event) => this.#active?.changeWindow({ [name]: event.target.valueAsNumber }));
    }
  }

  /** Side by side, or in fewer columns where that makes them clearly larger. */
  #arrange() {
    for (const view of this.#views) view.element.hidden = this.#alone && view !== this.#active;
    const number = this.#alone ? 1 : this.#views.length;
    const { width, height } = byId("views").getBoundingClientRect();
    const aspects = this.#study?.answer?.views.map((view) => view.width / view.height) ?? [ASPECT];
    const aspect = aspects.reduce((sum, one) => sum + one, 0) / aspects.length;
    const side = (columns) => Math.min(width / columns, (aspect * height) / Math.ceil(number / columns));
    let columns = Math.max(1, number);
    for (let fewer = columns - 1; fewer > 0; fewer--) if (side(fewer) > CLEARLY * side(columns)) columns = fewer;
    byId("views").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  }
}

function told(state, problem) {
  if (problem === null) return element("p", {}, STATES[state]);
  return element("p", { class: "problem" }, `${problem.title}: ${problem.detail}`);
}

function drawLegend({ full_logit: fullLogit, colors }) {
  const context = byId("legend").getContext("2d");
  colors.forEach(([red, green, blue], level) => {
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${level / (colors.length - 1)})`;
    context.fillRect(level, 0, 1, 1);
  });
  byId("legend-end").textContent = `${fullLogit} logits`;
}
