// The list on the left: each study's state, probability and error; the order follows the answers.

import { byId, copyOf } from "./dom.js";
import { count, decimals, measure, percent } from "./numbers.js";

const WORDS = { waiting: "waiting", predicting: "predicting …", busy: "server busy, waits …", failed: "failed" };

export class Worklist {
  #studies;
  #open;
  #rows = new Map(); // study to its element
  #opened = null;

  /** @param open called with the study that is chosen. */
  constructor(studies, open) {
    this.#studies = studies;
    this.#open = open;
    studies.addEventListener("change", () => this.#refresh());
    byId("studies").addEventListener("keydown", (event) => this.#walk(event));
    byId("clear").addEventListener("click", () => studies.removeAll());
  }

  mark(study) {
    this.#opened = study;
    this.#refresh();
  }

  /** Opens the study `step` places after the one that is open, if there is one. */
  openNext(step) {
    const { ordered } = this.#studies;
    const at = ordered.indexOf(this.#opened);
    const next = ordered[at < 0 ? 0 : at + step];
    if (next) this.#open(next);
  }

  #refresh() {
    const { ordered, counts } = this.#studies;
    for (const study of this.#rows.keys()) if (!ordered.includes(study)) this.#rows.delete(study);
    const rows = ordered.map((study) => this.#row(study));
    const { activeElement } = document;
    if (rows.some((row, place) => byId("studies").children[place] !== row) || byId("studies").children.length !== rows.length) {
      byId("studies").replaceChildren(...rows);
      if (activeElement?.isConnected) activeElement.focus({ preventScroll: true }); // moving a row takes its focus away
    }
    byId("clear").hidden = counts.all === 0;
    byId("progress").textContent = progress(counts);
  }

  #row(study) {
    if (!this.#rows.has(study)) this.#rows.set(study, this.#newRow(study));
    const row = this.#rows.get(study);
    const { answer, problem } = study;
    const find = (selector) => row.querySelector(selector);
    row.dataset.state = study.state;
    row.classList.toggle("abnormal", answer?.abnormal ?? false);
    if (study === this.#opened) find(".open").setAttribute("aria-current", "true");
    else find(".open").removeAttribute("aria-current");
    find(".count").textContent = count(study.files.length, "view") + (study.leftOut.length > 0 ? `, ${study.leftOut.length} left out` : "");
    find(".state").textContent = answer ? (answer.abnormal ? "Abnormal" : "Normal") : WORDS[study.state];
    find(".probability").textContent = answer ? decimals(answer.probability) : "";
    find(".probability").title = answer ? percent(answer.probability) : "";
    find(".probability").value = answer?.probability ?? "";
    find(".measure").replaceChildren(...(answer ? [measure(answer.probability, answer.threshold)] : []));
    find(".problem").hidden = find(".choose").hidden = problem === null;
    find(".problem").textContent = problem === null ? "" : `${problem.title}: ${problem.detail}`;
    find(".without").hidden = !(problem?.view && study.files.length > 1);
    return row;
  }

  #newRow(study) {
    const row = copyOf("row");
    row.querySelector(".name").textContent = study.name;
    row.querySelector(".name").title = study.name;
    row.querySelector(".open").addEventListener("click", () => this.#open(study));
    row.querySelector(".retry").addEventListener("click", () => this.#retry(study));
    row.querySelector(".without").addEventListener("click", () => this.#retry(study, study.problem.view));
    return row;
  }

  #retry(study, without) {
    this.#rows.get(study).querySelector(".open").focus(); // its buttons go away
    this.#studies.retry(study, without);
  }

  /** Arrow keys move between the rows. */
  #walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const buttons = [...byId("studies").querySelectorAll(".open")];
    const at = buttons.indexOf(event.target.closest(".study")?.querySelector(".open"));
    buttons[at + step]?.focus();
    event.preventDefault();
  }
}

function progress({ all, answered, failed }) {
  if (all === 0) return "No studies yet";
  return `${answered} of ${count(all, "study", "studies")}${failed > 0 ? `, ${failed} failed` : ""}`;
}
