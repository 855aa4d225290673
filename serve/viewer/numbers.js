// How numbers are written: a probability always to the same four decimals, whether as a number or in percent.

import { element, table } from "./dom.js";

export const decimals = (probability) => probability.toFixed(4);

/** In percent, of the same four decimals: never rounded twice to something else. */
export const percent = (probability) => `${(100 * Number(decimals(probability))).toFixed(2)} %`;

/** A probability as it is read; its `value` is the number as the server gave it. */
export const datum = (probability) => element("data", { value: probability }, decimals(probability));

export const count = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;

const SVG = "http://www.w3.org/2000/svg";

function bar(name, attributes) {
  const made = document.createElementNS(SVG, "rect");
  made.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A probability between 0 and 1 as a bar, with a mark at the threshold and one for each member. */
export function measure(probability, threshold, members = []) {
  const made = document.createElementNS(SVG, "svg");
  const mark = (name, at) => bar(name, { x: Math.min(99.4, Math.max(0, 100 * at - 0.3)), width: 0.6, y: 0, height: 8 });
  for (const [key, value] of Object.entries({ viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" })) made.setAttribute(key, value);
  made.append(
    bar("track", { x: 0, width: 100, y: 2, height: 4 }),
    bar("filled", { x: 0, width: 100 * probability, y: 2, height: 4 }),
    ...members.map((member) => mark("member", member)),
    mark("threshold", threshold),
  );
  return made;
}

function range(values) {
  return `${decimals(Math.min(...values))} to ${decimals(Math.max(...values))}`;
}

/** Everything that the answer says of a study. */
export function answerElements(answer) {
  const members = answer.members.map((member) => member.probability);
  const verdict = element("p", { class: answer.abnormal ? "verdict abnormal" : "verdict" }, answer.abnormal ? "Abnormal" : "Normal");
  const headline = element("p", { class: "headline" }, datum(answer.probability), element("span", {}, percent(answer.probability)));
  const relation = `${answer.abnormal ? "Above" : "Not above"} the threshold of ${decimals(answer.threshold)}; mean over the views.`;
  const made = [element("div", { class: "decision" }, verdict, headline, measure(answer.probability, answer.threshold, members), element("p", {}, relation))];
  if (answer.warnings.length > 0) {
    made.push(element("ul", { class: "problem", "aria-label": "Warnings" }, ...answer.warnings.map((text) => element("li", {}, text))));
  }
  const views = answer.views.map((view) => [view.name, datum(view.probability), percent(view.probability), `${view.width} × ${view.height}`, `${view.cam.range[0].toFixed(1)} to ${view.cam.range[1].toFixed(1)}`]);
  made.push(
    table("Views", ["File", "Probability", "Percent", "Pixels", "CAM, logits"], views),
    table("Members", ["Trial", "Probability", "Percent"], answer.members.map((member) => [member.trial, datum(member.probability), percent(member.probability)])),
    element("p", { class: "hint" }, `The members lie from ${range(members)}.`),
    element("p", { class: "hint" }, `Study type: ${answer.study_type ?? "not given"}. Ensemble `, element("code", {}, answer.ensemble.id), `, made ${answer.ensemble.created.slice(0, 10)}.`),
  );
  return made;
}
