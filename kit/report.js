"use strict";
const list = document.getElementById("samples"), asked = [...list.children];
const form = document.querySelector(".controls"), field = form.elements;
const shown = ".sample:not([hidden]) .cell:not([hidden]) .text";

function update() {
  const word = field.find.value.trim().toLowerCase();
  const low = field.low.valueAsNumber, high = field.high.valueAsNumber;  // NaN where nothing is asked
  const models = [...form.querySelectorAll("[name=model]")].map((box) => box.checked);
  const value = (sample) => {  // NaN for a model without that number
    const { sentiment, judge, ...more } = sample.querySelector(`[data-model="${field.of.value}"]`).dataset;
    return Number({ sentiment, judge, gap: sentiment - judge, ...more }[field.key.value]);
  };
  const values = new Map(asked.map((sample) => [sample, value(sample)]));
  let count = 0;
  for (const sample of asked) {
    for (const cell of sample.querySelectorAll(".cell")) cell.hidden = !models[cell.dataset.model];
    const texts = [...sample.querySelectorAll(".asked, .cell:not([hidden]) .text")];
    sample.hidden = (field.all && !field.all.checked && sample.dataset.sample !== "0")
      || !texts.some((text) => text.textContent.toLowerCase().includes(word))
      || (!Number.isNaN(low) && !(values.get(sample) >= low)) || (!Number.isNaN(high) && !(values.get(sample) <= high));
    count += !sample.hidden;
  }
  const key = (sample) => values.get(sample) * Number(field.order.value);
  const order = field.order.value ? [...asked].sort((a, b) => Number.isNaN(key(a)) - Number.isNaN(key(b)) || key(a) - key(b)) : asked;
  if (order.some((sample, i) => sample !== list.children[i])) list.append(...order);  // moving them all is slow
  field.count.textContent = `${count} of ${asked.length}`;
  reach(list.querySelector(`${shown} i`));
}

// One token at a time can be reached with Tab; the arrow keys go on from there.
function reach(token) {
  for (const old of list.querySelectorAll("i[tabindex]")) old.removeAttribute("tabindex");
  if (token) token.tabIndex = 0;
}
function tell(token) {
  const ratio = Number(token.title), times = Math.exp(Math.abs(ratio)).toLocaleString("en", { maximumSignificantDigits: 2 });
  const model = token.closest(".cell").querySelector("b").textContent;
  document.getElementById("token").textContent = `${model}: “${token.textContent}” log π/π_ref ${token.title} nats, `
    + (ratio < 0 ? `1/${times} as likely as under base` : `${times} times as likely as under base`);
}
const token = (event) => event.target.closest(".text i");
// Not pointerover: that comes too when the page scrolls to the focus under a pointer at rest.
list.addEventListener("pointermove", (event) => { if (token(event)) tell(token(event)); });
list.addEventListener("focusin", (event) => { if (token(event)) tell(token(event)); });
list.addEventListener("click", (event) => { if (token(event)) { reach(token(event)); token(event).focus(); } });
list.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step || !token(event)) return;
  event.preventDefault();
  const all = event.key === "ArrowLeft" || event.key === "ArrowRight" ? "i" : "i:first-of-type";  // or the next text
  const tokens = [...list.querySelectorAll(`${shown} ${all}`)];
  const here = token(event).matches(all) ? token(event) : token(event).parentElement.querySelector(all);
  const next = tokens[tokens.indexOf(here) + step];
  if (next) { reach(next); next.focus(); }
});

form.hidden = false;
form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
