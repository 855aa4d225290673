// The StudyInstanceUID (0020,000D) of a DICOM file, and nothing else of it: names and dates stay unread.

const HEAD_BYTES = 2 ** 20; // the tag lies before the pixels; private groups ahead of it can be large
const LONG_VRS = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]);
const IMPLICIT = "1.2.840.10008.1.2";
const UNREAD = ["1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"]; // big-endian and deflated: the server reads them
const UNDEFINED = 0xffffffff;

/** @returns {Promise<string | null>} null: not a DICOM file with a preamble, or the tag is not found. */
export async function studyUid(file) {
  if ((await file.slice(128, 132).text()) !== "DICM") return null;
  const view = new DataView(await file.slice(0, HEAD_BYTES).arrayBuffer());
  try {
    return find(view);
  } catch (error) {
    if (error instanceof RangeError) return null; // the head ends inside an element
    throw error;
  }
}

function text(view, offset, length) {
  return String.fromCharCode(...new Uint8Array(view.buffer, offset, length)).replace(/[\0 ]+$/, "");
}

/** Walks the elements; sequences and items of undefined length are walked through, all others stepped over. */
function find(view) {
  let offset = 132, depth = 0, implicit = false;
  while (offset < view.byteLength) {
    const group = view.getUint16(offset, true), tag = view.getUint16(offset + 2, true);
    const delimiter = group === 0xfffe;
    const bare = delimiter || (implicit && group !== 2);
    const vr = bare ? "" : text(view, offset + 4, 2);
    const long = LONG_VRS.has(vr);
    const length = bare || !long ? (bare ? view.getUint32(offset + 4, true) : view.getUint16(offset + 6, true)) : view.getUint32(offset + 8, true);
    offset += long ? 12 : 8;
    if (delimiter && tag !== 0xe000) depth -= 1; // the end of an item or of a sequence
    else if (length === UNDEFINED) {
      if (vr === "UN") return null; // its content is implicit whatever the file is
      depth += 1;
    } else {
      if (depth === 0 && group === 2 && tag === 0x10) {
        const syntax = text(view, offset, length);
        if (UNREAD.includes(syntax)) return null;
        implicit = syntax === IMPLICIT;
      }
      if (depth === 0 && group === 0x20 && tag === 0xd) return text(view, offset, length) || null;
      if (depth === 0 && group > 0x20 && group !== 0xfffe) return null; // tags ascend
      offset += length;
    }
  }
  return null;
}
