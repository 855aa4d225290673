// The server's HTTP interface. What is refused for want of a token, or as one too many, is sent again; all
// else that fails throws: a server that cannot answer in time (503) is not to be asked over and over.

import { atMost } from "./at_most.js";
import { authorization, renewToken } from "./token.js";

/** Why a request was not answered: `problem` as RFC 9457 has it, `{title, detail, view?}`. */
export class RequestError extends Error {
  constructor(problem) {
    super(`${problem.title}: ${problem.detail}`);
    this.problem = problem;
  }
}

const UNREACHABLE = { title: "no answer", detail: "the server cannot be reached, or a file has changed since it was chosen" };

async function problemOf(response) {
  const type = response.headers.get("content-type") ?? "";
  if (type.startsWith("application/problem+json")) return response.json();
  return { title: `status ${response.status}`, detail: await response.text() };
}

/** Waits, or throws as soon as `signal` is aborted. */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
}

async function send(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(UNREACHABLE);
  }
}

async function request(path, { body, signal, onWait } = {}) {
  for (;;) {
    const headers = authorization();
    const response = await send(path, { method: body ? "POST" : "GET", body, signal, headers });
    if (response.ok) return response;
    const retryAfter = Number.parseFloat(response.headers.get("retry-after"));
    if (response.status === 401 && (await renewToken(headers))) continue;
    if (response.status === 429 && retryAfter >= 0) {
      onWait?.(retryAfter);
      await pause(Math.max(retryAfter, 0.1), signal);
      continue;
    }
    throw new RequestError(await problemOf(response));
  }
}

export async function ensemble() {
  return (await request("v1/ensemble")).json();
}

/** How maps are painted: `{full_logit, full_opacity, colors}`. */
export async function overlayScale() {
  return (await request("viewer/overlay.json")).json();
}

/**
 * A study's answer, with the raw maps.
 * @param {File[]} files its views.
 * @param {string} studyType or "".
 * @param {{signal: AbortSignal, onWait: (seconds: number) => void}} options
 */
export async function predict(files, studyType, options) {
  const body = new FormData();
  for (const file of files) body.append("views", file, file.name);
  if (studyType) body.append("study_type", studyType);
  return (await request("v1/studies/predict?cam=raw", { body, ...options })).json();
}

const twoPictures = atMost(2);

/** A view's pixels as the network gets them: a PNG file, 8-bit gray. */
export function picture(file, signal) {
  return twoPictures(async () => {
    signal.throwIfAborted();
    const body = new FormData();
    body.append("view", file, file.name);
    return (await request("v1/views/picture", { body, signal })).blob();
  });
}
