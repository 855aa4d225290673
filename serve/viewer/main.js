// The page: what is dropped becomes studies, the worklist shows them, the reading area opens one.

import { RequestError, ensemble, overlayScale } from "./api.js";
import { byId } from "./dom.js";
import { filesOfDrop, filesOfInput, groupStudies } from "./intake.js";
import { listenForKeys } from "./keys.js";
import { count } from "./numbers.js";
import { Reading } from "./reading.js";
import { Studies } from "./studies.js";
import { Worklist } from "./worklist.js";

async function add(found) {
  const say = (text) => (byId("intake").textContent = text);
  say("Looking at the files …");
  try {
    const { studies: grouped, ignored } = await groupStudies(await found);
    const names = ignored.slice(0, 3).join(", ") + (ignored.length > 3 ? " …" : "");
    say(ignored.length > 0 ? `${count(ignored.length, "file")} ignored, no radiograph: ${names}` : "");
    studies.add(grouped, byId("study-type").value);
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    say(`Nothing was added, a file cannot be read: ${error.message}`);
  }
}

function listenForDrops() {
  let depth = 0; // of the elements that a drag is over: each one that it enters and leaves says so
  const show = (by) => {
    depth = by === 0 ? 0 : depth + by;
    byId("drop").hidden = depth <= 0;
  };
  const withFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => withFiles(event) && show(1));
  addEventListener("dragleave", (event) => withFiles(event) && show(-1));
  addEventListener("dragover", (event) => event.preventDefault()); // else the browser opens the file in the page's place
  addEventListener("drop", (event) => {
    event.preventDefault();
    show(0);
    add(filesOfDrop(event.dataTransfer));
  });
}

function open(study) {
  if (study !== reading.study) reading.open(study);
  worklist.mark(study);
}

/** Says which ensemble serves, or why that is not known: then again after the next answer. */
async function describeServer() {
  try {
    const { id, members, created } = await ensemble();
    byId("served").textContent = `Ensemble ${id}, ${count(members.length, "network")}, ${created.slice(0, 10)}`;
    byId("served").className = "";
  } catch (error) {
    tell(error);
  }
}

function tell(error) {
  if (!(error instanceof RequestError)) throw error;
  byId("served").textContent = error.message;
  byId("served").className = "problem";
}

const studies = new Studies();
let reading, worklist;

try {
  reading = new Reading(await overlayScale());
  worklist = new Worklist(studies, open);
  studies.addEventListener("change", ({ detail: study }) => {
    if (study === null) open(null);
    else if (study === reading.study) reading.refresh();
    else if (study.state === "answered" && studies.counts.all === 1) open(study);
    if (study?.state === "answered" && byId("served").className === "problem") describeServer();
  });
  listenForKeys(reading, worklist);
  listenForDrops();
  for (const id of ["files", "folder"]) {
    byId(`choose-${id}`).addEventListener("click", () => byId(id).click());
    byId(id).addEventListener("change", ({ target }) => {
      add(filesOfInput(target));
      target.value = ""; // the same files may be chosen again
    });
  }
  document.body.dataset.ready = "true";
  await describeServer();
} catch (error) {
  tell(error);
}
