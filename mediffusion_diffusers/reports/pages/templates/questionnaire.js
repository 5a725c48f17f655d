// Answers live in localStorage, by study and reader; each reader has one of the study's orders, by the code.
const study = JSON.parse(document.getElementById("study").textContent);
const find = id => document.getElementById(id);
const radios = [...document.querySelectorAll("#pair input[type=radio]")];
const numItems = study.items.length;
let reader = null, order = [], answers = {}, place = 0, since = 0, isKept = true;

const storageName = code => `mediffusion-reader-study:${study.name}:${code}`;

function read(name) {
  try { return localStorage.getItem(name); } catch { isKept = false; return null; }
}

function keep() {
  try {
    localStorage.setItem(storageName(reader), JSON.stringify({ answers }));
    localStorage.setItem(storageName(""), reader);
  } catch { isKept = false; }
  find("unsaved").hidden = isKept;
}

function orderOf(code) {
  let hash = 2166136261;  // FNV-1a
  for (const letter of code) hash = Math.imul(hash ^ letter.charCodeAt(0), 16777619) >>> 0;
  return study.orders[hash % study.orders.length];
}

const itemAt = at => study.items[order[at]];
const numAnswered = () => Object.keys(answers).length;

function show(section) {
  for (const name of ["start", "pair", "end"]) find(name).hidden = name !== section;
}

function begin(code) {
  reader = code;
  order = orderOf(code);
  let kept = null;
  try { kept = JSON.parse(read(storageName(code))); } catch { /* damaged: begin anew */ }
  answers = kept?.answers ?? {};
  const open = order.findIndex(index => !(study.items[index].name in answers));
  keep();
  if (open < 0) return finish();
  go(open);
}

function go(to) {
  place = Math.min(Math.max(to, 0), numItems - 1);
  const item = itemAt(place), grade = answers[item.name]?.grade;
  show("pair");
  find("finding").textContent = item.label;
  for (const [id, source] of [["original", study.originals[item.original]], ["modified", item.modified]]) find(id).src = source;
  for (const radio of radios) radio.checked = Number(radio.value) === grade;
  find("back").disabled = place === 0;
  find("forward").disabled = grade === undefined;
  find("progress").value = numAnswered();
  find("count").textContent = `Pair ${place + 1} of ${numItems}, ${numAnswered()} answered`;
  find("finding").focus({ preventScroll: true });
  since = performance.now();
}

function answer(grade) {
  const item = itemAt(place), seconds = (performance.now() - since) / 1000 + (answers[item.name]?.seconds ?? 0);
  answers[item.name] = { grade, seconds: Math.round(seconds * 10) / 10 };
  keep();
  forward();
}

function forward() {
  if (place + 1 < numItems) return go(place + 1);
  const open = order.findIndex(index => !(study.items[index].name in answers));
  if (open >= 0) return go(open);
  finish();
}

function finish() {
  show("end");
  find("end").querySelector("h2").focus();
}

function save() {
  const lines = ["study,reader,place,item,grade,seconds"];
  order.forEach((index, at) => {
    const name = study.items[index].name, given = answers[name];
    if (given) lines.push([study.name, reader, at + 1, name, given.grade, given.seconds].join(","));
  });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = `answers-${study.name}-${reader}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

find("start").querySelector("form").addEventListener("submit", event => {
  event.preventDefault();
  begin(find("reader").value.trim());
});
for (const radio of radios) radio.addEventListener("click", () => answer(Number(radio.value)));
find("back").addEventListener("click", () => go(place - 1));
find("forward").addEventListener("click", forward);
find("review").addEventListener("click", () => go(numItems - 1));
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
// Arrow keys turn pages, also within the group of radio buttons, whose choice they would change.
document.addEventListener("keydown", event => {
  if (find("pair").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const grade = Number(event.key);
  if (Number.isInteger(grade) && grade >= 1 && grade <= study.grades.length) answer(grade);
  else if (event.key === "ArrowLeft" || event.key === "Backspace") { if (place > 0) go(place - 1); }
  else if (event.key === "ArrowRight") { if (!find("forward").disabled) forward(); }
  else return;
  event.preventDefault();
});
for (const image of [find("original"), find("modified")]) {
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalHeight < study.smooth_from));
}
window.addEventListener("beforeunload", event => { if (!isKept && numAnswered()) event.preventDefault(); });
find("reader").value = read(storageName("")) ?? "";
find("unsaved").hidden = isKept;
find("reader").focus();
