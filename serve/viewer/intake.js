// Dropped or chosen files to studies: a folder is a study, loose files together are one, DICOM files go by their study.

import { studyUid } from "./study_uid.js";

const byName = new Intl.Collator("en", { numeric: true }).compare;

/** @typedef {{file: File, folder: string}} Found a file and the path of its folder, "" for a loose one. */

/** @returns {Promise<Found[]>} of a drop; to be called while the event is handled, later the browser has forgotten it. */
export async function filesOfDrop(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const roots = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const found = await Promise.all(roots.map((root) => (root instanceof File ? [{ file: root, folder: "" }] : filesOfEntry(root, ""))));
  return found.flat();
}

async function filesOfEntry(entry, folder) {
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), folder }];
  const path = folder ? `${folder}/${entry.name}` : entry.name;
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // 100 at a time
    if (entries.length === 0) return found;
    for (const inner of entries) found.push(...(await filesOfEntry(inner, path)));
  }
}

/** @returns {Found[]} of a file input, with or without folders. */
export function filesOfInput(input) {
  return [...input.files].map((file) => ({ file, folder: file.webkitRelativePath.split("/").slice(0, -1).join("/") }));
}

/**
 * @param {Found[]} found
 * @returns {Promise<{studies: {name: string, files: File[]}[], ignored: string[]}>} studies by name, and the names of
 *   files that are no radiographs.
 */
export async function groupStudies(found) {
  const groups = new Map();
  const ignored = [];
  for (const { file, folder } of found) {
    if (file.name.startsWith(".")) continue; // .DS_Store, and the ._name.png beside each file of a Mac's archive
    if (!(await mayBeRadiograph(file))) {
      ignored.push(file.name);
      continue;
    }
    const uid = await studyUid(file);
    const key = uid ? `uid ${uid}` : `folder ${folder}`;
    if (!groups.has(key)) groups.set(key, { folder, files: [] });
    groups.get(key).files.push(file);
  }
  const studies = [...groups.values()].map(({ folder, files }) => {
    files.sort((a, b) => byName(a.name, b.name));
    return { name: folder || looseName(files), files: toldApart(files, (file, name) => new File([file], name)) };
  });
  studies.sort((a, b) => byName(a.name, b.name));
  return { studies: toldApart(studies, (study, name) => ({ ...study, name })), ignored };
}

function looseName(files) {
  return files.length === 1 ? files[0].name : `${files[0].name} and ${files.length - 1} more`;
}

/** Numbers those that have the name of one before: errors and numbers are told by name. */
function toldApart(named, rename) {
  const seen = new Map();
  return named.map((one) => {
    const times = (seen.get(one.name) ?? 0) + 1;
    seen.set(one.name, times);
    return times === 1 ? one : rename(one, `${one.name} (${times})`);
  });
}

/** By its name, else by its first bytes. A damaged radiograph is one: the server says what is wrong with it. */
async function mayBeRadiograph(file) {
  if (file.name === "DICOMDIR") return false;
  const head = String.fromCharCode(...new Uint8Array(await file.slice(0, 132).arrayBuffer()));
  if (head.startsWith("PK\x03\x04")) return false; // a zip holds views that this page could not tell apart
  if (/\.(png|jpe?g|dcm|dicom)$|^[^.]+$/i.test(file.name)) return true;
  return head.startsWith("\x89PNG") || head.startsWith("\xff\xd8\xff") || head.endsWith("DICM");
}
