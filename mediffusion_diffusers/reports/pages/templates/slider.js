// The layers of a stack are spread evenly over the slider; layer k appears while the slider goes from k - 1 to k.
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input[type=range]"), output = slider.querySelector("output");
  const bar = slider.querySelector(".bar div"), stops = JSON.parse(slider.dataset.stops);
  const show = () => {
    const value = Number(input.value), stop = stops[Math.round(value)], isStop = Number.isInteger(value);
    for (const stack of slider.querySelectorAll(".stack")) {
      const layers = stack.querySelectorAll("img"), place = value / Number(input.max) * (layers.length - 1);
      layers.forEach((layer, k) => { layer.style.opacity = Math.min(1, Math.max(0, place - k + 1)); });
    }
    output.textContent = isStop ? stop.text : slider.dataset.between;
    bar.style.width = 100 * stop.probability + "%";
    bar.parentElement.style.visibility = isStop ? "visible" : "hidden";
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  show();
}
