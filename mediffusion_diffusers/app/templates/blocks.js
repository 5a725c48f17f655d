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

// A box is drawn on the given picture with mouse or finger; its sides are relative to the picture's.
let corner = null;
const placeIn = (frame, event) => {
  const { left, top, width, height } = frame.getBoundingClientRect();
  const within = (share) => Math.min(1, Math.max(0, share));
  return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
};
const boxTo = (place) => {
  const [x, y] = [0, 1].map((side) => Math.min(corner[side], place[side]));
  const [width, height] = [0, 1].map((side) => Math.abs(corner[side] - place[side]));
  return { x, y, width, height };
};
element.addEventListener("pointerdown", (event) => {
  const frame = event.target.closest(".mdf-draw");
  if (!frame) return;
  corner = placeIn(frame, event);
  frame.setPointerCapture(event.pointerId);
  event.preventDefault();
});
element.addEventListener("pointermove", (event) => {
  const frame = corner && event.target.closest(".mdf-draw");
  if (frame) showBox(frame.querySelector(".mdf-box"), boxTo(placeIn(frame, event)));
});
element.addEventListener("pointerup", (event) => {
  const frame = corner && event.target.closest(".mdf-draw");
  const box = frame && boxTo(placeIn(frame, event));
  corner = null;
  if (box && box.width > 0.02 && box.height > 0.02) trigger("select", box);
});
const showBox = (mark, box) => {
  mark.hidden = false;
  const shares = { left: box.x, top: box.y, width: box.width, height: box.height };
  for (const [side, share] of Object.entries(shares)) mark.style[side] = 100 * share + "%";
};
