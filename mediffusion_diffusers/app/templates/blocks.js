// The divider over original and counterfactual follows its range input, which mouse, finger and keys move.
element.addEventListener("input", (event) => {
  const compare = event.target.closest(".mdf-compare");
  if (!compare) return;
  compare.style.setProperty("--at", event.target.value + "%");
  event.target.setAttribute("aria-valuetext", `original up to ${event.target.value} percent from the left`);
});
element.addEventListener("click", (event) => {
  const button = event.target.closest(".mdf-examples button");
  if (button) trigger("click", { index: Number(button.dataset.index) });
});
