/** Shown while a piece is being written: what its author got wrong, laid over the page. Loaded by session.js if needed. */

/** @type {HTMLElement | null} */
let overlay = null;

/** @param {string | null} error one line with file, line and reason; null: it is mended */
export function show(error) {
  overlay?.remove();
  overlay = null;
  if (error === null) return;
  overlay = document.createElement("div");
  overlay.setAttribute("role", "alert");
  overlay.style.cssText =
    "all: initial; position: fixed; inset: auto 12px 12px; z-index: 2147483647; padding: 12px 16px; border-radius: 8px;" +
    "background: #400; color: #fff; font: 14px/1.5 ui-monospace, monospace; box-shadow: 0 4px 24px #0008;" +
    "white-space: pre-wrap; overflow-wrap: anywhere; cursor: pointer";
  overlay.textContent = `${error}\n\nThe room goes on with the code as it was. Save again, and this goes away.`;
  overlay.title = "click to hide";
  overlay.addEventListener("click", () => show(null));
  document.body.append(overlay);
}
