// Sends the chosen file's bytes, without its name, and shows the HTML that comes back.
const result = document.getElementById("result");
const noteLine = document.getElementById("note");
const fileInput = document.getElementById("file");
const examples = [...document.querySelectorAll(".example")];
let running = null; // the AbortController of the request under way

const note = (text) => { noteLine.textContent = text; };

// `load` gives the file's bytes; `example` is the phantom's button, if one was clicked.
async function explain(load, example = null) {
  if (running) running.abort(); // which frees its place in the server's queue
  const request = new AbortController();
  running = request;
  note("");
  for (const each of examples) each.setAttribute("aria-pressed", each === example);
  result.setAttribute("aria-busy", "true");
  try {
    const response = await fetch("/explain", {
      method: "POST",
      headers: { "content-type": "application/octet-stream" },
      body: await load(),
      signal: request.signal,
    });
    const text = await response.text();
    if (response.headers.get("content-type").startsWith("text/html")) result.innerHTML = text;
    else note(text);
  } catch (error) {
    if (!request.signal.aborted) note("No answer: is the file still there, and the page's server still running?");
  }
  if (running === request) result.setAttribute("aria-busy", "false");
}

function choose(file) {
  if (!file) return;
  const limit = Number(fileInput.dataset.maxMib);
  const size = Math.ceil(file.size / 2 ** 20);
  if (size > limit) note(`This file has ${size} MiB: ${limit} are the most.`);
  else explain(() => file);
}

fileInput.addEventListener("change", () => {
  choose(fileInput.files[0]);
  fileInput.value = ""; // the same file may be chosen again
});
for (const example of examples) {
  example.addEventListener("click", () => explain(async () => (await fetch(example.dataset.film)).blob(), example));
}

// Anywhere on the page: a film that misses the box must not replace the page.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  choose(event.dataTransfer.files[0]);
});

// The choice between the overlays of a result, which are all in it.
result.addEventListener("change", (event) => {
  if (event.target.name !== "overlay") return;
  for (const each of result.querySelectorAll("[data-overlay]")) each.hidden = each.dataset.overlay !== event.target.value;
});
