// Reads the chosen file into the component's value, in base64 and without its name, and asks for its explanation.
const note = (text) => { element.querySelector(".note").textContent = text; };

const ask = (film) => { note(""); props.value = film; trigger("submit"); };

const read = (file) => {
  if (!file) return;
  if (file.size > props.limit) return note(`This file has ${Math.ceil(file.size / 2 ** 20)} MiB: ${props.limit / 2 ** 20} are the most.`);
  const reader = new FileReader();
  reader.onload = () => ask(reader.result.split(",")[1] || "");
  reader.onerror = () => note("This file cannot be read.");
  reader.readAsDataURL(file);
};

// On the element, which stays when its content is rendered anew.
element.addEventListener("change", (event) => {
  if (event.target.id !== "file") return;
  read(event.target.files[0]);
  event.target.value = "";   // the same file may be chosen again
});
element.addEventListener("click", (event) => {
  const example = event.target.closest(".example");
  if (example) ask(example.dataset.film);
});
// Anywhere on the page: a film that misses the box must not replace the page.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); read(event.dataTransfer.files[0]); });
