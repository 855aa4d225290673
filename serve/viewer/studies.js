// The studies of this page and their predictions. Says "change" with the study whenever something of it is new.

import { RequestError, predict } from "./api.js";
import { atMost } from "./at_most.js";

/**
 * @typedef {object} Study
 * @property {string} name from folders and files
 * @property {File[]} files its views
 * @property {string} studyType or ""
 * @property {"waiting" | "predicting" | "busy" | "answered" | "failed"} state busy: the server asked to come again
 * @property {object | null} answer of the server
 * @property {{title: string, detail: string, view?: string} | null} problem of the last attempt
 * @property {string[]} leftOut names of the files that are no longer sent
 */

export class Studies extends EventTarget {
  #all = [];
  #two = atMost(2);
  #removed = new AbortController();

  /** Answered ones by probability, then those to come, then those that failed. */
  get ordered() {
    const rank = (study) => ({ answered: 0, failed: 2 })[study.state] ?? 1;
    const probability = (study) => study.answer?.probability ?? 0;
    return this.#all.toSorted((a, b) => rank(a) - rank(b) || probability(b) - probability(a)); // stable
  }

  /** How many are in each state: `{all, answered, failed}`. */
  get counts() {
    const number = (state) => this.#all.filter((study) => study.state === state).length;
    return { all: this.#all.length, answered: number("answered"), failed: number("failed") };
  }

  /** @param {{name: string, files: File[]}[]} found */
  add(found, studyType) {
    const added = found.map((study) => ({ ...study, studyType, state: "waiting", answer: null, problem: null, leftOut: [] }));
    this.#all.push(...added);
    for (const study of added) this.#start(study);
  }

  /** Sends a failed study again, without the file of this name if there is one. */
  retry(study, without = null) {
    if (without !== null) {
      study.files = study.files.filter((file) => file.name !== without);
      study.leftOut.push(without);
    }
    this.#start(study);
  }

  removeAll() {
    this.#removed.abort();
    this.#removed = new AbortController();
    this.#all = [];
    this.#tell(null);
  }

  #start(study) {
    const { signal } = this.#removed;
    this.#set(study, { state: "waiting", problem: null });
    this.#two(async () => {
      if (!signal.aborted) await this.#predict(study, signal);
    });
  }

  async #predict(study, signal) {
    this.#set(study, { state: "predicting" });
    try {
      const onWait = () => this.#set(study, { state: "busy" });
      this.#set(study, { answer: await predict(study.files, study.studyType, { signal, onWait }), state: "answered" });
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof RequestError)) throw error;
      this.#set(study, { problem: error.problem, state: "failed" });
    }
  }

  #set(study, values) {
    Object.assign(study, values);
    this.#tell(study);
  }

  #tell(study) {
    this.dispatchEvent(new CustomEvent("change", { detail: study }));
  }
}
