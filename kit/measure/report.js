const list = document.getElementById("samples"), asked = [...list.children];
const form = document.querySelector(".controls"), field = form.elements;

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
  reach(list, list.querySelector(`${shown} i`));
}

form.hidden = false;
form.addEventListener("input", update);
form.addEventListener("submit", (event) => event.preventDefault());
update();
