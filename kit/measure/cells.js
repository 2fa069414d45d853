"use strict";
// A token tells its number: point at it, tap it, or go from token to token with the arrow keys.
const shown = ".sample:not([hidden]) .cell:not([hidden]) .text";

// One token at a time can be reached with Tab; the arrow keys go on from there.
function reach(list, token) {
  for (const old of list.querySelectorAll("i[tabindex]")) old.removeAttribute("tabindex");
  if (token) token.tabIndex = 0;
}
function tell(token) {
  const ratio = Number(token.title), times = Math.exp(Math.abs(ratio)).toLocaleString("en", { maximumSignificantDigits: 2 });
  const model = token.closest(".cell").querySelector("b").textContent;
  document.getElementById("token").textContent = `${model}: “${token.textContent}” log π/π_ref ${token.title} nats, `
    + (ratio < 0 ? `1/${times} as likely as under base` : `${times} times as likely as under base`);
}
const token = (event) => event.target.closest?.(".samples .text i");
// Not pointerover: that comes too when the page scrolls to the focus under a pointer at rest.
document.addEventListener("pointermove", (event) => { if (token(event)) tell(token(event)); });
document.addEventListener("focusin", (event) => { if (token(event)) tell(token(event)); });
document.addEventListener("click", (event) => {
  if (!token(event)) {
    document.getElementById("token").textContent = "";
    return;
  }
  reach(token(event).closest(".samples"), token(event));
  token(event).focus();
});
document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step || !token(event)) return;
  event.preventDefault();
  const all = event.key === "ArrowLeft" || event.key === "ArrowRight" ? "i" : "i:first-of-type";  // or the next text
  const list = token(event).closest(".samples");
  const tokens = [...list.querySelectorAll(`${shown} ${all}`)];
  const here = token(event).matches(all) ? token(event) : token(event).parentElement.querySelector(all);
  const next = tokens[tokens.indexOf(here) + step];
  if (next) { reach(list, next); next.focus(); }
});
