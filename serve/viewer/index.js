// The page: sends the chosen files as one study and shows the answer. Texts from files and server only as textContent.

const byId = (id) => document.getElementById(id);
const percent = (probability) => `${(100 * probability).toFixed(1)} %`;

let files = [];
let originals = []; // object URLs of the views on screen

function choose(list) {
  files = [...list];
  byId("chosen").replaceChildren(...files.map((file) => item(file.name)));
  byId("send").disabled = files.length === 0;
  showProblem(null);
}

function item(text) {
  const element = document.createElement("li");
  element.textContent = text;
  return element;
}

function row(...cells) {
  const element = document.createElement("tr");
  for (const text of cells) element.insertCell().textContent = text;
  return element;
}

function showProblem(problem) {
  for (const element of byId("chosen").children) element.className = "";
  byId("problem").hidden = problem === null;
  if (problem === null) return;
  byId("answer").hidden = true;
  const faulty = files.findIndex((file) => file.name === problem.view);
  if (faulty >= 0) byId("chosen").children[faulty].className = "faulty";
  byId("problem").textContent = `${problem.title}: ${problem.detail}`;
}

function showAnswer(answer) {
  byId("decision").textContent = answer.abnormal ? "Abnormal" : "Normal";
  const relation = answer.abnormal ? "above" : "not above";
  byId("sum").textContent =
    `Probability of abnormality ${percent(answer.probability)}, ${relation} the threshold of ${percent(answer.threshold)}.`;
  byId("warnings").replaceChildren(...answer.warnings.map(item));
  originals.forEach(URL.revokeObjectURL);
  originals = files.map((file) => URL.createObjectURL(file));
  byId("views").replaceChildren(...answer.views.map((view, index) => viewElement(view, originals[index])));
  byId("members").replaceChildren(...answer.members.map((member) => row(member.trial, percent(member.probability))));
  byId("answer").hidden = false;
}

function viewElement(view, original) {
  const element = byId("view").content.cloneNode(true);
  const [low, high] = view.cam.range.map((value) => value.toFixed(2));
  element.querySelector("h4").textContent =
    `${view.name}: ${percent(view.probability)} (${view.width} × ${view.height} pixels, map from ${low} to ${high} logits)`;
  const images = { ".original": [original, "as sent"], ".overlay": [`data:image/png;base64,${view.cam.png_base64}`, "with class activation map"] };
  for (const [selector, [source, what]] of Object.entries(images)) {
    const image = element.querySelector(selector);
    image.src = source;
    image.alt = `${view.name}, ${what}`;
  }
  return element;
}

async function problemOf(response) {
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("application/problem+json")) return response.json();
  return { title: `status ${response.status}`, detail: await response.text() };
}

async function send() {
  const body = new FormData();
  for (const file of files) body.append("views", file);
  if (byId("study-type").value) body.append("study_type", byId("study-type").value);
  const response = await fetch("v1/studies/predict?cam=overlay", { method: "POST", body });
  if (response.ok) showAnswer(await response.json());
  else showProblem(await problemOf(response));
}

byId("files").addEventListener("change", (event) => choose(event.target.files));

for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}

byId("study").addEventListener("submit", async (event) => {
  event.preventDefault();
  showProblem(null);
  byId("send").disabled = true;
  byId("state").textContent = "Predicting …";
  try {
    await send();
  } catch {
    showProblem({ title: "no answer", detail: "the server cannot be reached, or a file has changed since it was chosen" });
  }
  byId("state").textContent = "";
  byId("send").disabled = files.length === 0;
});

const served = await fetch("v1/ensemble").then((response) => response.json());
byId("served").textContent = `Ensemble ${served.id} of ${served.members.length} networks, made ${served.created.slice(0, 10)}, trained on data set ${served.data_id}`;
