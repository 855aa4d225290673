// How numbers are written: a probability always to the same four decimals, whether as a number or in percent.

import { copyOf, element, table } from "./dom.js";

export const decimals = (probability) => probability.toFixed(4);

/** In percent, of the same four decimals: never rounded twice to something else. */
export const percent = (probability) => `${(100 * Number(decimals(probability))).toFixed(2)} %`;

/** A probability as it is read; its `value` is the number as the server gave it. */
export const datum = (probability) => element("data", { value: probability }, decimals(probability));

export const count = (number, noun, plural = `${noun}s`) => `${number} ${number === 1 ? noun : plural}`;

/** A probability between 0 and 1 as a bar, with a mark at the threshold and one for each member. */
export function measure(probability, threshold, members = []) {
  const made = copyOf("measure");
  const place = (line, at) => ["x1", "x2"].forEach((end) => line.setAttribute(end, at));
  const mark = made.querySelector(".member");
  for (const member of members) place(made.insertBefore(mark.cloneNode(), mark), member);
  mark.remove();
  made.querySelector(".filled").setAttribute("width", probability);
  place(made.querySelector(".threshold"), threshold);
  return made;
}

/** A map's value; a minus as long as a plus, and none before zero. */
const logits = (value) => value.toFixed(1).replace(/^-0\.0$/, "0.0").replace("-", "−");

const range = (values, write) => `${write(Math.min(...values))} to ${write(Math.max(...values))}`;

/** Nothing where the ensemble is not calibrated. */
function calibrated(probability) {
  if (probability === null) return [];
  return [element("p", { class: "calibrated" }, "Calibrated ", datum(probability), ` (${percent(probability)})`)];
}

function decision(answer) {
  const verdict = element("p", { class: answer.abnormal ? "verdict abnormal" : "verdict" }, answer.abnormal ? "Abnormal" : "Normal");
  const headline = element("p", { class: "headline" }, datum(answer.probability), element("span", {}, percent(answer.probability)));
  const members = answer.members.map((member) => member.probability);
  const relation = `${answer.abnormal ? "Above" : "Not above"} the threshold of ${decimals(answer.threshold)}. Mean over the views; members from ${range(members, decimals)}.`;
  const made = [verdict, headline, ...calibrated(answer.calibrated_probability), measure(answer.probability, answer.threshold, members), element("p", { class: "hint" }, relation)];
  if (answer.warnings.length > 0) {
    made.push(element("ul", { class: "problem", "aria-label": "Warnings" }, ...answer.warnings.map((text) => element("li", {}, text))));
  }
  return made;
}

function views(answer) {
  const rows = answer.views.map((view) => {
    const about = `${view.width} × ${view.height} pixels, CAM ${range(view.cam.range, logits)}`;
    return [element("div", {}, view.name, element("p", { class: "hint" }, about)), datum(view.probability), percent(view.probability)];
  });
  return table("Views", ["File", "Probability", "Percent"], rows);
}

/** Everything that the answer says of a study, in three parts: the study, its views, the ensemble. */
export function answerParts(answer) {
  const { id, created } = answer.ensemble;
  const members = answer.members.map((member) => [member.trial, datum(member.probability), percent(member.probability)]);
  return [
    decision(answer),
    [views(answer)],
    [
      table("Members of the ensemble", ["Trial", "Probability", "Percent"], members),
      element("p", { class: "hint" }, "Ensemble ", element("code", {}, id), `, made ${created.slice(0, 10)}. Study type ${answer.study_type ?? "not given"}.`),
    ],
  ];
}
