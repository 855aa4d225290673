// The access token: asked for when the server wants one, kept for this tab alone, never shown again.

import { byId } from "./dom.js";

const KEY = "mura-ray-token";
let asking = null; // the answer to come while the dialog is open: however many requests wait, it opens once

export function authorization() {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * Asks for a token after the server refused a request, unless a newer one than that request's is there by now.
 * @param {object} refused what `authorization` gave for that request.
 * @returns {Promise<boolean>} whether to send the request again; false: the dialog was cancelled.
 */
export async function renewToken(refused) {
  if (authorization().Authorization !== refused.Authorization) return true;
  asking ??= ask(refused.Authorization !== undefined).finally(() => (asking = null));
  return asking;
}

function ask(wasRefused) {
  const dialog = byId("token");
  const field = byId("token-value");
  sessionStorage.removeItem(KEY);
  byId("token-problem").textContent = wasRefused ? "The server did not accept this token." : "";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    const submit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, field.value.trim());
      dialog.close("use");
    };
    const cancel = () => dialog.close();
    const form = dialog.querySelector("form");
    form.addEventListener("submit", submit);
    byId("token-cancel").addEventListener("click", cancel);
    dialog.addEventListener("close", () => {
      form.removeEventListener("submit", submit);
      byId("token-cancel").removeEventListener("click", cancel);
      field.value = "";
      resolve(dialog.returnValue === "use");
    }, { once: true });
  });
}
