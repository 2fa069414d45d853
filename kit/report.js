"use strict";
const list = document.getElementById("prompts"), asked = [...list.children];
const find = document.getElementById("find"), sort = document.getElementById("sort");
const boxes = [...document.querySelectorAll("#shown-models input")];

function update() {
  const word = find.value.trim().toLowerCase();
  const [model, key] = sort.value.split(" ");
  const value = (prompt) => Number(prompt.querySelector(`[data-model="${model}"]`).dataset[key]);
  const order = sort.value ? [...asked].sort((a, b) => value(b) - value(a)) : asked;
  let shown = 0;
  for (const prompt of order) {
    prompt.hidden = !prompt.textContent.toLowerCase().includes(word);
    shown += !prompt.hidden;
    for (const cell of prompt.querySelectorAll(".cell")) cell.hidden = !boxes[cell.dataset.model].checked;
    list.append(prompt);
  }
  document.getElementById("count").textContent = `${shown} of ${asked.length} prompts`;
}
document.querySelector(".controls").addEventListener("input", update);
document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details")) d.open = true; });
update();
